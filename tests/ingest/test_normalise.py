"""Filters: each refusal for its own reason, with the value that was wrong; the rest untouched and in order."""

from typing import Any

import numpy as np
import pytest

from gfm.data.neighbors import count_edges
from gfm.data.ragged import RaggedBatch
from gfm.data.structure import Structure
from ingest.normalise import normalise
from ingest.recipe import Filters

CUTOFF = 5.0


def dimer(distance: float = 1.0, **changes: Any) -> Structure:
    fields: dict[str, Any] = {
        "numbers": np.array([8, 1], dtype=np.uint8),
        "positions": np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]),
        "cell": np.zeros((3, 3)),
        "pbc": np.zeros(3, dtype=bool),
        "energy": -50.0,
        "forces": np.zeros((2, 3)),
    }
    return Structure(**(fields | changes))


def crystal(height: float, **changes: Any) -> Structure:
    """Return one atom per cell; neighbours are its own images, ``height`` apart along a skewed axis."""
    cell = np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [1.5, 0.0, height]])
    fields: dict[str, Any] = {
        "numbers": np.array([29], dtype=np.uint8),
        "positions": np.zeros((1, 3)),
        "cell": cell,
        "pbc": np.ones(3, dtype=bool),
        "energy": -4.0,
        "forces": np.zeros((1, 3)),
    }
    return Structure(**(fields | changes))


def _atoms(num: int) -> dict[str, Any]:
    return {
        "numbers": np.ones(num, dtype=np.uint8),
        "positions": np.eye(num, 3),
        "forces": np.zeros((num, 3)),
    }


BAD: dict[str, tuple[Structure, str]] = {
    "non-finite-positions": (dimer(float("nan")), "NaN"),
    "non-finite-cell": (crystal(3.0, cell=np.full((3, 3), np.inf)), "NaN"),
    "non-finite-energy": (dimer(energy=float("nan")), "NaN"),
    "non-finite-forces": (dimer(forces=np.array([[0.0, 0.0, 0.0], [0.0, np.inf, 0.0]])), "NaN"),
    "non-finite-stress": (crystal(3.0, stress=np.full((3, 3), np.nan)), "NaN"),
    "position-too-far": (dimer(2e6), "2e+06 angstrom"),
    "energy-too-large": (dimer(energy=-1e12), "-1e+12 eV"),
    "stress-too-large": (crystal(3.0, stress=np.diag([0.0, -1.5, 0.0])), "1.5 eV/angstrom^3"),
    "force-too-large": (dimer(forces=np.array([[0.0, 0.0, 0.0], [300.0, 400.1, 0.0]])), "500.08 eV/angstrom"),
    "flat-cell": (crystal(1e-4), "0.0001 angstrom"),
    "atoms-too-close": (dimer(0.25), "0.25 angstrom"),
    "bad-atomic-number": (dimer(numbers=np.array([0, 1], dtype=np.uint8)), "0"),
    "too-many-atoms": (dimer(**_atoms(4)), "4 atoms"),
    "no-atoms": (dimer(**_atoms(0)), "0 atoms"),
}


@pytest.mark.parametrize("reason", BAD)
def test_each_fault_is_refused_for_its_reason_and_its_neighbours_are_kept(reason: str) -> None:
    structure, value = BAD[reason]
    batch = RaggedBatch.from_structures([dimer(key=1), structure, crystal(3.0, key=2)])
    kept, rejects = normalise(batch, ["first", "second", "third"], Filters(max_atoms=3, max_stress=1.0), CUTOFF)
    assert kept.batch.columns["key"].tolist() == [1, 2]
    assert [(reject.source, reject.reason) for reject in rejects] == [("second", reason)]
    assert value in rejects[0].value


def test_sound_structures_pass_untouched_whatever_labels_they_lack() -> None:
    sound = [dimer(), crystal(3.0), dimer(energy=None, forces=None), crystal(3.0, pbc=np.zeros(3, bool))]
    batch = RaggedBatch.from_structures(sound)
    kept, rejects = normalise(batch, list("abcd"), Filters(), CUTOFF)
    assert rejects == []
    assert kept.batch is batch
    assert kept.sources == list("abcd")


def test_distances_count_across_the_boundary_and_limits_can_be_lifted() -> None:
    thin = RaggedBatch.from_structures([crystal(0.28, cell=np.diag([3.0, 3.0, 0.28]))])
    _, rejects = normalise(thin, ["thin"], Filters(), CUTOFF)
    assert [(reject.reason, reject.value) for reject in rejects] == [("atoms-too-close", "0.28 angstrom")]
    kept, _ = normalise(thin, ["thin"], Filters(min_distance=None), CUTOFF)
    assert len(kept.batch) == 1
    wild = RaggedBatch.from_structures([dimer(forces=np.full((2, 3), 1e6))])
    assert len(normalise(wild, ["wild"], Filters(max_force=None), CUTOFF)[0].batch) == 1


def test_no_structures_at_all() -> None:
    kept, rejects = normalise(RaggedBatch.from_structures([]), [], Filters(), CUTOFF)
    assert (len(kept.batch), rejects) == (0, [])


def test_what_is_measured_goes_along_with_what_is_kept() -> None:
    stress = np.diag([0.1, -0.3, 0.2])
    forces = np.array([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    batch = RaggedBatch.from_structures([dimer(0.1), dimer(1.5, forces=forces), crystal(2.5, stress=stress)])
    kept, rejects = normalise(batch, ["close", "dimer", "crystal"], Filters(), CUTOFF)
    assert [reject.source for reject in rejects] == ["close"]
    assert kept.sources == ["dimer", "crystal"]
    expected = count_edges(
        *(kept.batch.columns[name] for name in ("positions", "cell", "pbc")), kept.batch.offsets, CUTOFF
    )
    np.testing.assert_array_equal(kept.num_edges, expected)
    # Along the skewed axis the image is at sqrt(1.5^2 + 2.5^2) angstrom, along the others at 3.
    np.testing.assert_allclose(kept.shortest, [1.5, np.hypot(1.5, 2.5)])
    np.testing.assert_allclose(kept.largest_force, [5.0, 0.0])
    np.testing.assert_allclose(kept.largest_stress, [np.nan, 0.3], rtol=1e-6)


def test_cells_with_millions_of_images_are_refused_before_their_edges_are_searched() -> None:
    pencil = crystal(3.0, cell=np.diag([0.012, 0.012, 0.012]))
    _, rejects = normalise(RaggedBatch.from_structures([pencil]), ["pencil"], Filters(), 40.0)
    assert [(reject.reason, reject.value) for reject in rejects] == [("atoms-too-close", "0.012 angstrom")]
