"""Keyed HDF5: layouts, names, units and signs; every conformer is a structure or a reject with its reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gfm.data.units import BOHR, GPA, HARTREE, KCAL_PER_MOL
from gfm.errors import ConfigError, DataError, MissingDataError
from ingest.readers.base import hash_id
from ingest.readers.hdf5 import Hdf5
from ingest.readers.hdf5_arrays import Hdf5Arrays
from ingest.readers.records import Refused

ENERGY, FORCES = "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"
WATER = np.array([8, 1, 1])


def _reaction(group: h5py.Group, numbers: Any, rows: int, rng: np.random.Generator) -> None:
    """Write the arrays of a reaction, or of one of its three special configurations."""
    group["atomic_numbers"] = np.array(numbers, dtype=np.uint8)
    group["positions"] = rng.normal(size=(rows, len(numbers), 3))
    group[ENERGY] = rng.normal(size=rows) - 4000.0
    group[f"{ENERGY.partition('.')[0]}.atomization_energy"] = rng.normal(size=rows)
    group[FORCES] = rng.normal(size=(rows, len(numbers), 3))


def _transition1x(path: Path) -> dict[str, int]:
    """Write a small file in the layout of Transition1x; return the conformers of its reactions."""
    rng = np.random.default_rng(1)
    reactions = {"C2H2O/rxn0000": 30, "C2H2O/rxn0001": 22, "CHN/rxn0002": 14}
    atoms = {"C2H2O": [6, 6, 8, 1, 1], "CHN": [6, 7, 1]}
    with h5py.File(path, "w") as h5:
        for name, rows in reactions.items():
            group = h5.create_group(f"data/{name}")
            _reaction(group, atoms[name.partition("/")[0]], rows, rng)
            for special in ("reactant", "transition_state", "product"):
                _reaction(group.create_group(special), atoms[name.partition("/")[0]], 1, rng)
        h5["train/C2H2O"] = h5py.SoftLink("/data/C2H2O")
        h5["test/CHN/rxn0002"] = h5["data/CHN/rxn0002"]  # a second name of the same group
    return reactions


def _spice(path: Path) -> None:
    """Write a small file in the layout of SPICE."""
    rng = np.random.default_rng(2)
    with h5py.File(path, "w") as h5:
        for name, numbers, rows in (("water", WATER, 5), ("[Na+] [Cl-]", [11, 17], 3), ("103147721", WATER, 2)):
            group = h5.create_group(name)
            group.create_dataset("subset", data=["SPICE Dataset v1.0"], dtype=h5py.string_dtype())
            group.create_dataset("smiles", data=["[O:1]([H:2])[H:3]"], dtype=h5py.string_dtype())
            group["atomic_numbers"] = np.array(numbers, dtype=np.int16)
            arrays = {
                "conformations": (rng.normal(size=(rows, len(numbers), 3)), np.float32, "bohr"),
                "dft_total_energy": (rng.normal(size=rows) - 76.0, np.float64, "hartree"),
                "dft_total_gradient": (rng.normal(size=(rows, len(numbers), 3)), np.float32, "hartree/bohr"),
                "formation_energy": (rng.normal(size=rows), np.float64, "hartree"),
                "mbis_charges": (rng.normal(size=(rows, len(numbers), 1)), np.float32, "elementary_charge"),
            }
            for key, (values, dtype, unit) in arrays.items():
                group.create_dataset(key, data=values, dtype=dtype).attrs["units"] = unit


def _custom(path: Path, **arrays: Any) -> Path:
    """Write a file with one group ``a`` of two water molecules; None leaves an array out."""
    rng = np.random.default_rng(3)
    whole = {
        "atomic_numbers": WATER,
        "positions": rng.normal(size=(2, 3, 3)),
        "energy": np.array([-1.5, -2.5]),
        "forces": rng.normal(size=(2, 3, 3)),
        **arrays,
    }
    with h5py.File(path, "w") as h5:
        for key, values in whole.items():
            if values is not None:
                h5[f"a/{key}"] = values
    return path


@pytest.mark.parametrize("part_bytes", [1 << 20, 1500])
def test_transition1x(
    part_bytes: int, tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    path = tmp_path / "Transition1x.h5"
    reactions = _transition1x(path)
    reading = read_all("hdf5", path, part_bytes, layout="transition1x")
    assert len(reading.structures) == sum(reactions.values())
    assert reading.reasons == {"left-out": 9}
    assert (len(reading.parts) > 5) == (part_bytes < 2000)
    with h5py.File(path) as h5:
        for name, rows in reactions.items():
            group = h5[f"data/{name}"]
            for row in range(rows):
                structure = reading.structures[f"{path}:/data/{name}[{row}]"]
                same(
                    structure,
                    numbers=group["atomic_numbers"][()],
                    positions=group["positions"][row],
                    energy=group[ENERGY][row],
                    forces=group[FORCES][row],
                    charge=None,
                    spin=None,
                    stress=None,
                    cell=np.zeros((3, 3)),
                    pbc=np.zeros(3, dtype=bool),
                )
                assert structure.group == hash_id(f"formula:{name.partition('/')[0]}")
                assert structure.key == hash_id(f"transition1x:data/{name}/{row}")


def test_a_split_of_transition1x_by_its_links(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    _transition1x(tmp_path / "t1x.h5")
    train = read_all("hdf5", tmp_path / "t1x.h5", layout="transition1x", root=["train"])
    assert len(train.structures) == 52
    test = read_all("hdf5", tmp_path / "t1x.h5", layout="transition1x", root="test", leave_out=[])
    assert (len(test.structures), test.rejects) == (17, [])
    everything = read_all("hdf5", tmp_path / "t1x.h5", layout="transition1x", root="")
    assert len(everything.structures) == 66  # no reaction is read by two names


def test_spice(tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]) -> None:
    path = tmp_path / "SPICE.hdf5"
    _spice(path)
    reading = read_all("hdf5", path, layout="spice", group_by="leaf")
    assert (len(reading.structures), reading.rejects) == (10, [])
    with h5py.File(path) as h5:
        for source, structure in reading.structures.items():
            name, _, row = source.partition(":/")[2].removesuffix("]").rpartition("[")
            group, index = h5[name], int(row)
            same(
                structure,
                numbers=group["atomic_numbers"][()],
                positions=group["conformations"][index].astype(np.float64) * BOHR,
                energy=group["dft_total_energy"][index] * HARTREE,
                forces=group["dft_total_gradient"][index].astype(np.float64) * -(HARTREE / BOHR),
                charge=None,
            )
            assert structure.group == hash_id(f"spice:{name}")
    by_formula = {structure.group for structure in read_all("hdf5", path, layout="spice").structures.values()}
    assert by_formula == {hash_id("formula:H2O"), hash_id("formula:ClNa")}


def test_units_that_contradict_the_options_are_refused(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = tmp_path / "SPICE.hdf5"
    _spice(path)
    with h5py.File(path, "a") as h5:
        h5["water/dft_total_gradient"].attrs["units"] = "Hartree/Angstrom"
        h5["water/conformations"].attrs["units"] = "Bohr"
        h5["103147721/dft_total_energy"].attrs["units"] = b"eV"
        h5["[Na+] [Cl-]/dft_total_energy"].attrs["units"] = " Ha "
    reading = read_all("hdf5", path, layout="spice")
    assert reading.reasons == {"other-unit": 7}
    assert len(reading.structures) == 3
    assert read_all("hdf5", path, layout="spice", ignore_units=True).rejects == []
    assert "dft_total_energy is in eV" in {reject.value.partition(" by")[0] for reject in reading.rejects}
    assert read_all("hdf5", path, layout="spice", length_unit="angstrom").reasons == {"other-unit": 10}


def test_names_units_and_signs_by_options(
    tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    path = tmp_path / "mine.h5"
    rng = np.random.default_rng(4)
    stress = rng.normal(size=(2, 6)).astype(np.float32)
    cell = np.array([[4.0, 0, 0], [0, 5.0, 0], [1.0, 0, 6.0]])
    with h5py.File(path, "w") as h5:
        group = h5.create_group("deep/er/down")
        group["Z"], group["R"] = np.array([[8, 1, 1], [1, 8, 1]]), rng.normal(size=(2, 3, 3))
        group["E"], group["G"] = np.array([[-10.0], [-20.0]]), rng.normal(size=(2, 3, 3))
        group["L"], group["S"], group["Q"], group["M"] = cell, stress, -1, np.array([1, 3])
        positions, gradient = group["R"][()], group["G"][()]
    options = {
        "numbers_key": "Z", "positions_key": "R", "energy_key": "E", "forces_key": "G", "cell_key": "L",
        "stress_key": "S", "charge_key": "Q", "spin_key": "M", "energy_unit": "kcal/mol", "length_unit": "bohr",
        "forces_unit": "kcal/mol/angstrom", "forces_sign": "gradient", "stress_unit": "GPa",
        "stress_sign": "compression", "pbc": [True, True, False],
    }  # fmt: skip
    reading = read_all("hdf5", path, **options)
    for row, structure in enumerate(reading.structures.values()):
        xx, yy, zz, yz, xz, xy = stress[row].astype(np.float64) * -GPA
        same(
            structure,
            numbers=[[8, 1, 1], [1, 8, 1]][row],
            positions=positions[row] * BOHR,
            energy=(-10.0 - 10.0 * row) * KCAL_PER_MOL,
            forces=gradient[row] * -KCAL_PER_MOL,
            stress=np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]),
            cell=cell * BOHR,
            pbc=np.array([True, True, False]),
            charge=-1,
            spin=1 + 2 * row,
        )
        assert structure.key == hash_id(f"hdf5:{tmp_path.name}/mine.h5:deep/er/down/{row}")
        assert structure.group == hash_id("formula:H2O")
    for group_by, name in (("top", "deep"), ("leaf", "deep/er/down")):
        grouped = read_all("hdf5", path, **options, group_by=group_by).structures.values()
        assert {structure.group for structure in grouped} == {hash_id(f"hdf5:{tmp_path.name}/mine.h5:{name}")}


def test_single_structures_and_arrays_at_the_root(
    tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    positions = np.arange(9.0).reshape(3, 3)
    with h5py.File(tmp_path / "one.h5", "w") as h5:
        for place in ("", "a/", "b/"):
            h5[f"{place}atomic_numbers"], h5[f"{place}positions"] = WATER, positions
            h5[f"{place}energy"], h5[f"{place}forces"] = -5.0, -positions
    structures = read_all("hdf5", tmp_path / "one.h5").structures
    assert [source.rpartition(":")[2] for source in structures] == ["/[0]", "/a[0]", "/b[0]"]
    for structure in structures.values():
        same(structure, positions=positions, energy=-5.0, forces=-positions, numbers=WATER)


_NAN = np.ones((2, 3, 3))
_NAN[1, 2, 0] = np.nan
_HUGE = np.full((2, 3, 3), 1e39)  # finite in float64, not in the float32 that is stored


@pytest.mark.parametrize(
    ("arrays", "reasons"),
    [
        ({"forces": _NAN}, {"nan-forces": 1}),
        ({"positions": _NAN}, {"nan-positions": 1}),
        ({"forces": _HUGE}, {"infinite-forces": 2}),
        ({"energy": np.array([np.inf, np.nan])}, {"infinite-energy": 1, "nan-energy": 1}),
        ({"energy": np.zeros(3)}, {"bad-shape": 2}),
        ({"energy": np.zeros((1, 2))}, {"bad-shape": 2}),
        ({"energy": "text"}, {"bad-energy": 2}),
        ({"energy": None}, {"missing-energy": 2}),
        ({"forces": None}, {"missing-forces": 2}),
        ({"forces": np.zeros((2, 3))}, {"bad-shape": 2}),
        ({"atomic_numbers": None}, {"missing-numbers": 2}),
        ({"atomic_numbers": np.array([8, 1])}, {"bad-shape": 2}),
        ({"atomic_numbers": np.array([8.0, 1.0, 1.5])}, {"bad-atomic-number": 2}),
        ({"atomic_numbers": np.array([[8, 1, 1], [8, 0, 119]])}, {"bad-atomic-number": 1}),
        ({"positions": np.zeros((2, 3, 2))}, {"bad-shape": 2}),
        ({"positions": np.zeros((0, 3, 3))}, {"no-atoms": 1}),
        ({"positions": np.zeros((2, 0, 3)), "atomic_numbers": np.zeros(0, dtype=int)}, {"no-atoms": 2}),
        ({"charge": np.array([0.5, 0.0])}, {"bad-charge": 1}),
        ({"charge": np.zeros(3)}, {"bad-shape": 2}),
        ({"stress": np.array([[np.nan] * 6, [1.0] * 5 + [np.nan]])}, {"nan-stress": 1}),
        ({"cell": np.full((2, 3, 3), np.nan)}, {"nan-cell": 2}),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_with_its_reason(
    arrays: dict[str, Any], reasons: dict[str, int], tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    path = _custom(tmp_path / "a.h5", **arrays)
    reading = read_all("hdf5", path, charge_key="charge", stress_key="stress", cell_key="cell")
    assert reading.reasons == reasons
    assert reading.total == max(2, sum(reasons.values())) or "no-atoms" in reasons


def test_a_group_without_positions_does_not_vanish(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = _custom(tmp_path / "a.h5")
    with h5py.File(path, "a") as h5:
        h5["b/energy"] = np.zeros(4)
        h5["c/remarks"] = "nothing to read"
    reading = read_all("hdf5", path)
    assert len(reading.structures) == 2
    assert {reject.source: reject.reason for reject in reading.rejects} == {f"{path}:/b": "missing-positions"}


def test_forces_may_be_absent(tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]) -> None:
    forces = np.ones((2, 3, 3))
    forces[1] = np.nan
    path = _custom(tmp_path / "a.h5", forces=forces)
    first, second = read_all("hdf5", path, require_forces=False).structures.values()
    same(first, forces=forces[0])
    same(second, forces=None, energy=-2.5)
    for structure in read_all("hdf5", path, require_forces=False, forces_key=None).structures.values():
        same(structure, forces=None)


def test_groups_of_many_sizes_come_in_order_and_whole(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    """Blocks end in the midst of groups, and groups with and without charge share blocks."""
    rng = np.random.default_rng(6)
    expected = {}
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as h5:
        for index, rows in enumerate([1, 2500, 3, 1, 999, 1001, 7]):
            group = h5.create_group(f"g{index}")
            group["atomic_numbers"], group["positions"] = WATER, rng.normal(size=(rows, 3, 3))
            energy = rng.normal(size=rows)
            group["energy"], group["forces"] = energy, rng.normal(size=(rows, 3, 3))
            if index % 2:
                group["charge"] = np.arange(rows) % 3
            for row in range(rows):
                charge = row % 3 if index % 2 else None
                expected[f"{path}:/g{index}[{row}]"] = (energy[row], charge)
    for part_bytes in (1 << 22, 30_000):
        structures = read_all("hdf5", path, part_bytes, charge_key="charge").structures
        assert list(structures) == list(expected)
        assert {name: (one.energy, one.charge) for name, one in structures.items()} == expected


@pytest.mark.parametrize("options", [{"chunks": True, "compression": "gzip"}, {"dtype": ">f8"}, {}], ids=str)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_every_form_of_an_array_is_read_as_h5py_reads_it(
    options: dict[str, Any], libver: str, tmp_path: Path
) -> None:
    values = np.random.default_rng(7).normal(size=(50, 4, 3))
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as h5:
        h5.create_dataset("a", data=values, **options)
        h5.create_dataset("unwritten", (3, 2), dtype="f8", fillvalue=2.5)
    with h5py.File(tmp_path / "a.h5") as h5:
        arrays = Hdf5Arrays(h5)
        stored = arrays.find(arrays.root, "a")
        assert (stored.dataset is None) == (not options and libver == "earliest")
        assert stored.shape == (50, 4, 3)
        np.testing.assert_array_equal(arrays.read(stored), values)
        np.testing.assert_array_equal(arrays.read(stored, 7, 31), values[7:31])
        np.testing.assert_array_equal(arrays.read(arrays.find(arrays.root, "unwritten")), np.full((3, 2), 2.5))
        assert arrays.find(arrays.root, "absent") is None


def test_a_damaged_header_gives_no_other_numbers(tmp_path: Path) -> None:
    """What is read by its place is what the library reads, or what was written; else it is refused."""
    path = tmp_path / "a.h5"
    values = np.arange(12.0).reshape(4, 3)
    with h5py.File(path, "w") as h5:
        h5["a"] = values
    data = path.read_bytes()
    with h5py.File(path) as h5:
        begin = Hdf5Arrays(h5).children(h5.id)[0].address
    refused = 0
    for place in range(begin * 8, (begin + 160) * 8, 7):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with h5py.File(path) as h5:
            arrays = Hdf5Arrays(h5)
            try:
                found = arrays.read(arrays.find(arrays.root, "a"))
            except Refused:
                refused += 1
                continue
            try:
                expected = h5["a"][()]
            except (OSError, KeyError, TypeError, ValueError, RuntimeError):
                expected = values
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert found.tobytes() == expected.tobytes()
    assert refused > 10


def test_links_stay_in_the_file_and_cycles_end(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    _custom(tmp_path / "other.h5")
    path = _custom(tmp_path / "a.h5")
    with h5py.File(path, "a") as h5:
        h5["a/up"] = h5["/"]
        h5["a/again"] = h5py.SoftLink("/a")
        h5["b/to"] = h5py.SoftLink("/a")
        h5["c"] = h5py.ExternalLink("other.h5", "/a")
        h5["d"] = h5py.SoftLink("/c/positions")  # by way of the other file
        h5["e"] = h5py.SoftLink("/nowhere")
        for key in ("atomic_numbers", "positions", "energy"):
            h5[f"f/{key}"] = h5py.SoftLink(f"/a/{key}")
        h5["f/forces"] = h5py.ExternalLink("other.h5", "/a/forces")
    reading = read_all("hdf5", path)
    assert {source.partition(":/")[2] for source in reading.structures} == {"a[0]", "a[1]"}
    assert [(reject.source.partition(":/")[2], reject.reason) for reject in reading.rejects] == [
        ("c", "external-link"), ("d", "unreadable"), ("e", "unreadable"),
        ("f/forces", "external-link"), ("f[0]", "external-link"), ("f[1]", "external-link"),
    ]  # fmt: skip
    inside = read_all("hdf5", path, require_forces=False, forces_key=None)
    assert len(inside.structures) == 4  # arrays may be shared between groups


def test_another_layout_is_refused(tmp_path: Path) -> None:
    path = _custom(tmp_path / "a.h5")
    with pytest.raises(DataError, match=r"a\.h5: no group holds 'positions'; expected the layout transition1x"):
        Hdf5(layout="transition1x").plan(str(path), 1 << 20)
    with pytest.raises(DataError, match=r"'coordinates'.*groups below /data.*options positions_key, root"):
        Hdf5(positions_key="coordinates", root=("data",)).plan(str(path), 1 << 20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match="no HDF5 files"):
        Hdf5().plan(str(tmp_path / "empty"), 1 << 20)


def test_options_win_over_the_layout() -> None:
    reader = Hdf5(layout="spice", energy_key="formation_energy", energy_kind="formation", theory="own")
    assert (reader.energy_key, reader.positions_key, reader.length_unit) == (
        "formation_energy", "conformations", "bohr",
    )  # fmt: skip
    assert reader.about().energy_kind == "formation"
    assert reader.about().theory == "own"
    assert Hdf5.model_validate(reader.model_dump(mode="json")) == reader
    assert Hdf5(layout="transition1x").about().doi == "10.1038/s41597-022-01870-w"


@pytest.mark.parametrize(
    "options",
    [{"forces_unit": "furlong"}, {"forces_key": None}, {"layout": "other"}, {"leaveout": []}],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, ValueError), match=next(iter(options))):
        Hdf5.model_validate(options)
