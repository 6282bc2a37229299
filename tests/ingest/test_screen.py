"""Screening: duplicates and outliers are found across parts and datasets, whatever the order of anything."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import ingest.duplicates
from gfm.data.ragged import RaggedBatch
from gfm.data.splits import split_of
from gfm.data.structure import Structure
from gfm.runtime.cluster import ClusterConfig, open_client
from gfm.runtime.config import parse_config
from ingest.build import build
from ingest.readers.base import hash_id
from ingest.recipe import Recipe
from ingest.tables import digests_of
from store import open_dataset
from store.manifest import Manifest

pytestmark = pytest.mark.slow  # whole builds, most of them twice

ENERGY = {"H": -3.0, "O": -7.0, "C": -9.0}  # eV


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with open_client(ClusterConfig(processes=False, workers=2, dashboard=None)) as client:
        yield client


def molecule(rng: np.random.Generator, formula: str) -> Atoms:
    atoms = Atoms(formula)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)
    atoms.positions = 1.2 * grid[: len(atoms)] + rng.normal(scale=0.05, size=(len(atoms), 3))
    energy = sum(ENERGY[s] for s in atoms.symbols) + rng.normal(scale=0.05) * len(atoms)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=rng.normal(size=(len(atoms), 3)))
    return atoms


def molecules(count: int, seed: int) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    return [molecule(rng, "H{}O{}C{}".format(*rng.integers(1, 5, size=3))) for _ in range(count)]


def save(path: Path, frames: list[Atoms]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, frames, format="extxyz")
    return path


def recipe_for(output: Path, sources: dict[str, Path], **changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "output": str(output),
        "sources": [{"name": n, "reader": "extxyz", "path": str(p)} for n, p in sources.items()],
        "part_bytes": 4000,
        "shard_bytes": 8000,
    }
    return parse_config(Recipe, data | changes, "test")


def rejects_of(output: Path) -> list[dict[str, str]]:
    files = sorted((output / "rejects").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def keys_of(output: Path) -> dict[str, set[int]]:
    dataset = open_dataset(output)
    columns = dataset.batch(np.arange(len(dataset))).columns
    names = np.array(dataset.dataset_names)[columns["dataset"]]
    return {name: set(columns["key"][names == name].tolist()) for name in dataset.dataset_names}


def test_of_equal_structures_one_is_kept_across_files_parts_and_datasets(tmp_path: Path, client: Any) -> None:
    frames = molecules(60, seed=1)
    other = molecules(20, seed=2)
    a = save(tmp_path / "raw" / "a.xyz", [*frames, *frames[:5]])
    b = save(tmp_path / "raw" / "b.xyz", [*other, *frames[10:13], other[0]])
    manifest = build(recipe_for(tmp_path / "out", {"zeta": a, "alpha": b}), client=client)
    assert manifest.structures == 80
    # The dataset whose name comes first keeps what both have.
    counted = {entry.name: (entry.structures, entry.rejected) for entry in manifest.datasets}
    assert counted == {"zeta": (57, {"duplicate": 8}), "alpha": (23, {"duplicate": 1})}
    rejects = rejects_of(tmp_path / "out")
    assert len(rejects) == 9
    assert all(line["value"].startswith("identical to ") for line in rejects)
    crossing = [line for line in rejects if "b.xyz" in line["value"] and "a.xyz" in line["source"]]
    assert len(crossing) == 3


def test_which_of_the_equal_is_kept_depends_on_no_order(tmp_path: Path, client: Any) -> None:
    frames = molecules(40, seed=3)
    a = save(tmp_path / "raw" / "a.xyz", [*frames, *frames[:7]])
    b = save(tmp_path / "raw" / "b.xyz", [*frames[30:], *molecules(10, seed=4)])
    one = build(recipe_for(tmp_path / "one", {"a": a, "b": b}), client=client)
    other = build(recipe_for(tmp_path / "other", {"b": b, "a": a}, part_bytes=900), client=client)
    assert one.content_hash == other.content_hash
    assert keys_of(tmp_path / "one") == keys_of(tmp_path / "other")
    kept = build(recipe_for(tmp_path / "kept", {"a": a, "b": b}, duplicates="keep"), client=client)
    assert kept.structures == one.structures + 17


def test_many_buckets_find_what_one_finds(tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = molecules(50, seed=5)
    a = save(tmp_path / "raw" / "a.xyz", [*frames, *frames])
    one = build(recipe_for(tmp_path / "one", {"a": a}), client=client)
    monkeypatch.setattr(ingest.duplicates, "_PER_BUCKET", 7)
    many = build(recipe_for(tmp_path / "many", {"a": a}), client=client)
    assert one.structures == many.structures == 50
    assert one.content_hash == many.content_hash


def water(**changes: Any) -> Structure:
    fields: dict[str, Any] = {
        "numbers": np.array([8, 1], dtype=np.uint8),
        "positions": np.array([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0]], dtype=np.float32),
        "cell": np.zeros((3, 3)),
        "pbc": np.zeros(3, dtype=bool),
        "energy": -10.0,
        "forces": np.zeros((2, 3), dtype=np.float32),
    }
    return Structure(**(fields | changes))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"key": 7, "group": 8, "dataset": 1}, True),
        ({"forces": np.full((2, 3), -0.0, dtype=np.float32)}, True),
        ({"energy": np.nextafter(-10.0, 0.0)}, False),
        ({"forces": None}, False),
        ({"charge": 0}, False),
        ({"pbc": np.array([True, False, False])}, False),
        ({"numbers": np.array([1, 8], dtype=np.uint8)}, False),
    ],
)
def test_equal_means_geometry_and_labels_to_the_last_bit(change: dict[str, Any], same: bool) -> None:
    digests = digests_of(RaggedBatch.from_structures([water(), water(**change)]))
    assert (digests["high"][0] == digests["high"][1] and digests["low"][0] == digests["low"][1]) == same


def outlying(seed: int) -> tuple[list[Atoms], dict[int, str]]:
    """Return sound molecules with some that are not, and what each of those is refused as."""
    frames = molecules(400, seed)
    wrong = {17: "energy-outlier", 18: "energy-outlier", 113: "force-outlier", 250: "distance-outlier"}
    for index in (17, 18):
        frames[index].calc.results["energy"] += (-1) ** index * 277.0 * len(frames[index])
    frames[113].calc.results["forces"][0] = [4e4, 0.0, 0.0]
    frames[250].positions[1] = frames[250].positions[0] + [0.12, 0.0, 0.0]
    return frames, wrong


LIFTED = {"max_force": None, "min_distance": 0.05}


def test_outliers_are_refused_with_their_reason_and_the_reference_never_saw_them(
    tmp_path: Path, client: Any
) -> None:
    frames, wrong = outlying(seed=6)
    path = save(tmp_path / "raw" / "a.xyz", frames)
    split = {"train": 1.0, "validation": 0.0, "test": 0.0}
    manifest = build(recipe_for(tmp_path / "out", {"a": path}, filters=LIFTED, split=split), client=client)
    counts = {reason: list(wrong.values()).count(reason) for reason in set(wrong.values())}
    assert manifest.rejects == counts
    reference = manifest.datasets[0].reference
    sound = [frame for i, frame in enumerate(frames) if i not in wrong]
    clean = build(
        recipe_for(
            tmp_path / "clean", {"a": save(tmp_path / "raw" / "b.xyz", sound)}, filters=LIFTED, split=split
        ),
        client=client,
    )
    assert reference == clean.datasets[0].reference
    assert reference.residual_std is not None
    assert reference.residual_std < 0.1
    energies = [line for line in rejects_of(tmp_path / "out") if line["reason"] == "energy-outlier"]
    assert all("eV/atom, expected" in line["value"] for line in energies)
    limits = manifest.statistics["a"]["limits"]
    assert limits["energy-residual"]["high"] == pytest.approx(1.0, abs=0.2)


def test_limits_can_be_lifted_and_few_structures_have_none(tmp_path: Path, client: Any) -> None:
    frames, _ = outlying(seed=7)
    path = save(tmp_path / "raw" / "a.xyz", frames)
    lifted = build(
        recipe_for(tmp_path / "lifted", {"a": path}, filters=LIFTED | {"outliers": None}), client=client
    )
    assert (lifted.structures, lifted.rejects) == (400, {})
    few = save(tmp_path / "raw" / "few.xyz", frames[:60])
    manifest = build(recipe_for(tmp_path / "few", {"a": few}, filters=LIFTED), client=client)
    assert (manifest.structures, manifest.rejects) == (60, {})


def test_each_dataset_has_limits_of_its_own(tmp_path: Path, client: Any) -> None:
    hot = molecules(200, seed=8)
    for frame in hot:
        frame.calc.results["energy"] += 277.0 * len(frame)
    sources = {"cold": save(tmp_path / "a.xyz", molecules(200, seed=9)), "hot": save(tmp_path / "b.xyz", hot)}
    manifest = build(recipe_for(tmp_path / "out", sources), client=client)
    assert (manifest.structures, manifest.rejects) == (400, {})


def test_statistics_are_those_of_what_is_kept(tmp_path: Path, client: Any) -> None:
    frames, _ = outlying(seed=10)
    path = save(tmp_path / "raw" / "a.xyz", [*frames, *frames[:30]])
    manifest: Manifest = build(recipe_for(tmp_path / "out", {"a": path}, filters=LIFTED), client=client)
    dataset = open_dataset(tmp_path / "out")
    batch = dataset.batch(np.arange(len(dataset)))
    statistics = manifest.statistics["a"]
    assert statistics["num_atoms"]["count"] == len(dataset)
    norms = np.linalg.norm(batch.columns["forces"].astype(np.float64), axis=1)
    for symbol, number in (("H", 1), ("O", 8), ("C", 6)):
        mine = norms[batch.columns["numbers"] == number]
        moments = statistics["elements"][symbol]["force_norm"]
        assert moments["count"] == len(mine)
        assert moments["mean"] == pytest.approx(mine.mean())
        assert moments["maximum"] == mine.max()
    for name in ("energy_per_atom", "energy_residual", "largest_force", "shortest_distance", "neighbors"):
        histogram = statistics[f"{name}_histogram"]
        assert sum(histogram["counts"]) + histogram["below"] + histogram["above"] == len(dataset), name
    reference = dataset.references[0]
    counts = np.array([np.bincount(structure.numbers, minlength=119) for structure in dataset])
    residuals = (batch.columns["energy"] - counts @ reference) / batch.num_atoms
    histogram = statistics["energy_residual_histogram"]
    assert histogram["edges"][0] <= residuals.min()
    assert residuals.max() <= histogram["edges"][-1]
    assert "stress_histogram" not in statistics


def test_energies_without_a_reference_are_not_judged(tmp_path: Path, client: Any) -> None:
    # One formula is one group: wherever that falls, the whole set is in one split.
    rng = np.random.default_rng(11)
    frames = [molecule(rng, "OH") for _ in range(300)]
    path = save(tmp_path / "raw" / "a.xyz", frames)
    split = {"train": 0.0, "validation": 0.0, "test": 1.0}
    manifest = build(recipe_for(tmp_path / "out", {"a": path}, split=split), client=client)
    assert (manifest.structures, manifest.rejects) == (300, {})
    assert set(manifest.datasets[0].reference.unseen) == {"O", "H"}
    assert "energy_residual_histogram" not in manifest.statistics["a"]


def test_compositions_are_not_judged_by_references_of_too_few_others(tmp_path: Path, client: Any) -> None:
    # Three compositions fix three reference energies; those say nothing of a fourth composition.
    rng = np.random.default_rng(12)
    frames = [molecule(rng, formula) for formula in ("H3O", "HO2C", "H2C3", "H4O2C2") for _ in range(100)]
    for frame in frames[300:]:
        frame.calc.results["energy"] -= 20.0 * len(frame)
    frames[7].calc.results["energy"] -= 400.0
    path = save(tmp_path / "raw" / "a.xyz", frames)
    seeds = (seed for seed in range(1000) if _in_train(seed) == [True, True, True, False])
    split = {"train": 0.5, "validation": 0.0, "test": 0.5, "seed": next(seeds)}
    manifest = build(recipe_for(tmp_path / "out", {"a": path}, split=split), client=client)
    assert manifest.rejects == {"energy-outlier": 1}


def _in_train(seed: int) -> list[bool]:
    groups = [hash_id(f"formula:{formula}") for formula in ("H3O", "CHO2", "C3H2", "C2H4O2")]
    return (split_of(np.array(groups, dtype=np.uint64), (0.5, 0.0, 0.5), seed) == 0).tolist()


@pytest.mark.data
def test_genuine_structures_pass_and_what_is_there_twice_is_kept_once(
    tmp_path: Path, client: Any, shared_data: Path
) -> None:
    folder = shared_data / "mattersim-mptrj-alexandria"
    names = ("alexandria-random-1k", "mptrj-highest-stress-1k", "mptrj-random-1k")
    sources = {name: folder / f"{name}.xyz" for name in names}
    recipe = recipe_for(tmp_path / "out", sources, part_bytes="1MiB", shard_bytes="1MiB")
    manifest = build(recipe, client=client)
    assert set(manifest.rejects) <= {"duplicate"}
    structures = {
        (structure.numbers.tobytes(), structure.energy) for structure in open_dataset(tmp_path / "out")
    }
    assert len(structures) >= 0.99 * manifest.structures
