"""MPtrj: ranges of bytes, every frame; NaN and damage cost the frames they are in."""

import gc
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.data
import numpy as np
import pytest

from gfm.errors import CorruptDataError, DataError
from ingest.readers.base import BLOCK_STRUCTURES, hash_id
from ingest.readers.mptrj import MPtrj

GPA = 1.0 / 160.2176634  # eV/angstrom^3


def _load(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    loaded: dict[str, Any] = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return loaded


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "label", "count"),
    [
        ("synthetic-mptrj/MPtrj_2022.9_full.json", "corrected_total_energy", 192),
        ("synthetic-mptrj/MPtrj_2022.9_full.json", "uncorrected_total_energy", 192),
        ("mptrj-excerpt-native/MPtrj_excerpt_11frames_full_fields.json", "corrected_total_energy", 11),
        (
            "mptrj-excerpt-native/MPtrj_excerpt_random-1k_uncorrected_only.json.gz",
            "uncorrected_total_energy", 1000,
        ),
        (
            "mptrj-excerpt-native/MPtrj_excerpt_highest-stress-1k_uncorrected_only.json.gz",
            "uncorrected_total_energy", 1000,
        ),
    ],
)  # fmt: skip
def test_every_frame_is_read_as_json_reads_it(
    file: str,
    label: str,
    count: int,
    shared_data: Path,
    read_all: Callable[..., Any],
    same: Callable[..., None],
) -> None:
    path = shared_data / file
    reading = read_all("mptrj", path, label=label, part_bytes=50_000)
    assert reading.rejects == []
    assert len(reading.structures) == count
    assert (len(reading.parts) == 1) == (path.suffix == ".gz" or path.stat().st_size < 50_000)
    for material, frames in _load(path).items():
        for frame_id, frame in frames.items():
            structure = reading.structures.pop(f"{path}:/{material}/{frame_id}")
            sites = frame["structure"]["sites"]
            same(
                structure,
                numbers=[ase.data.atomic_numbers[site["species"][0]["element"]] for site in sites],
                positions=[site["xyz"] for site in sites],
                cell=frame["structure"]["lattice"]["matrix"],
                pbc=np.ones(3, dtype=bool),
                energy=frame[label],
                forces=frame["force"],
            )
            np.testing.assert_allclose(
                structure.stress, np.array(frame["stress"]) * -0.1 * GPA, rtol=1e-6, atol=1e-12
            )
            assert structure.group == hash_id(f"mp:{material}")
            assert structure.key == hash_id(f"mptrj:{material}/{frame_id}")
    assert not reading.structures
    assert MPtrj(label=label).about().energy_kind == f"total, {label.partition('_')[0]}"


@pytest.mark.data
def test_units_agree_with_the_same_frames_in_electronvolt(
    shared_data: Path, read_all: Callable[..., Any]
) -> None:
    folder = shared_data / "mptrj-excerpt-native"
    native = read_all(
        "mptrj",
        folder / "MPtrj_excerpt_highest-stress-1k_uncorrected_only.json.gz",
        label="uncorrected_total_energy",
    ).structures
    text = read_all(
        "extxyz", shared_data / "mattersim-mptrj-alexandria" / "mptrj-highest-stress-1k.xyz",
        group_key="mptrj_traj_id", group_prefix="mp", id_key="mptrj_snapshot_id",
    ).structures  # fmt: skip
    by_energy = {round(one.energy, 7): one for one in text.values()}
    for one in native.values():
        other = by_energy[round(one.energy, 7)]
        assert one.group == other.group
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-6)
        np.testing.assert_allclose(one.stress, other.stress, rtol=2e-5, atol=1e-7)


@pytest.mark.data
def test_a_label_that_is_not_there_is_refused(shared_data: Path, read_all: Callable[..., Any]) -> None:
    path = shared_data / "mptrj-excerpt-native" / "MPtrj_excerpt_random-1k_uncorrected_only.json.gz"
    assert read_all("mptrj", path).reasons == {"missing-energy": 1000}


@pytest.mark.data
def test_damaged_records_are_refused_with_their_reason(shared_data: Path, read_all: Callable[..., Any]) -> None:
    reading = read_all("mptrj", shared_data / "synthetic-mptrj" / "bad" / "bad_records.json")
    where = {reject.source.rpartition("/")[2]: reject.reason for reject in reading.rejects}
    assert where == {
        "mp-90000000-0-0": "nan-energy",
        "mp-90000002-0-0": "missing-forces",
        "mp-90000003-0-0": "bad-shape",
        "mp-90000004-0-0": "partial-occupancy",
        "mp-90000005-0-0": "bad-structure",
    }
    text = (shared_data / "synthetic-mptrj" / "bad" / "bad_records.json").read_text()
    assert reading.total == sum(len(frames) for frames in json.loads(text).values())


@pytest.mark.data
@pytest.mark.parametrize("part_bytes", [30_000, 1 << 26])
def test_a_cut_file_keeps_the_frames_before_the_cut(
    part_bytes: int, shared_data: Path, read_all: Callable[..., Any]
) -> None:
    path = shared_data / "synthetic-mptrj" / "bad" / "truncated.json"
    reading = read_all("mptrj", path, part_bytes=part_bytes)
    assert reading.reasons == {"truncated-file": 1}
    (reject,) = reading.rejects
    whole = read_all("mptrj", shared_data / "synthetic-mptrj")
    names = [source.partition(":/")[2] for source in whole.structures]
    kept = [source.partition(":/")[2] for source in reading.structures]
    assert kept == names[: len(kept)]
    assert reject.source.partition(":/")[2] == names[len(kept)]


def _frame(energy: str = "-1.0") -> str:
    site = '{"species": [{"element": "Si", "occu": 1}], "xyz": [0.0, 0.0, 0.0]}'
    structure = f'{{"lattice": {{"matrix": [[3, 0, 0], [0, 3, 0], [0, 0, 3]]}}, "sites": [{site}]}}'
    stress = "[[10, 0, 0], [0, 0, 0], [0, 0, 0]]"
    labels = f'"corrected_total_energy": {energy}, "force": [[0.5, 0, 0]], "stress": {stress}'
    return f'{{"structure": {structure}, {labels}}}'


def _file(**damage: str) -> str:
    """Return four materials of three frames; ``damage`` replaces the energy of a frame."""
    materials = []
    for material in range(4):
        frames = [
            f'"mp-{material}-0-{step}": {_frame(damage.get(f"f{material}{step}", "-1.0"))}' for step in range(3)
        ]
        materials.append(f'"mp-{material}": {{{", ".join(frames)}}}')
    return "{" + ", ".join(materials) + "}"


@pytest.mark.parametrize("part_bytes", [128, 700, 1 << 20])
def test_units_of_a_frame_by_hand(part_bytes: int, tmp_path: Path, read_all: Callable[..., Any]) -> None:
    (tmp_path / "a.json").write_text(_file())
    reading = read_all("mptrj", tmp_path, part_bytes=part_bytes)
    assert reading.rejects == []
    assert len(reading.structures) == 12
    for structure in reading.structures.values():
        assert structure.energy == -1.0
        assert structure.forces.tolist() == [[0.5, 0.0, 0.0]]
        # 10 kbar compressive by VASP's sign = -1 GPa
        assert structure.stress[0, 0] == pytest.approx(-1.0 / 160.2176634)


@pytest.mark.parametrize(
    ("damage", "reasons"),
    [
        ({"f11": "NaN"}, {"nan-energy": 1}),
        ({"f11": "-Infinity", "f30": "NaN"}, {"infinite-energy": 1, "nan-energy": 1}),
        ({"f11": "-1.0.0"}, {"bad-json": 1}),
        ({"f32": "?"}, {"bad-json": 1}),
        ({"f00": '"text"'}, {"bad-energy": 1}),
        ({"f00": "[1, 2]"}, {"bad-energy": 1}),
        ({"f00": "1e999"}, {"infinite-energy": 1}),
        ({"f00": "1" + "0" * 400}, {"bad-energy": 1}),
        ({"f00": "null"}, {"missing-energy": 1}),
        ({"f20": '0, "structure": 5'}, {"bad-structure": 1}),
    ],
)
def test_damage_in_one_frame_costs_that_frame(
    damage: dict[str, str], reasons: dict[str, int], tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    (tmp_path / "a.json").write_text(_file(**damage))
    for part_bytes in (500, 1 << 20):
        reading = read_all("mptrj", tmp_path, part_bytes=part_bytes)
        if reasons == {"bad-json": 1} and "f32" in damage:
            reasons = {"truncated-file": 1}  # behind the last frame nothing tells damage from an early end
        assert reading.reasons == reasons
        assert reading.total == 12
        assert {reject.source.rpartition("/")[2] for reject in reading.rejects} == {
            f"mp-{name[1]}-0-{name[2]}" for name in damage
        }


@pytest.mark.parametrize(
    ("species", "reason"),
    [
        (['[{"element": "Si"}]', '[{"element": "O", "occu": 1.0}]'], None),
        (['[{"element": "Si", "occu": 1}, {"element": "O", "occu": 1}]', "[]"], "partial-occupancy"),
        (['[{"element": "Si", "occu": 1}]', "[]"], "partial-occupancy"),
        (['[{"element": "Si", "occu": 0.5}]', '[{"element": "O", "occu": 1}]'], "partial-occupancy"),
        (['[{"element": "Si", "occu": 1}]', '[{"element": "Xx", "occu": 1}]'], "bad-atomic-number"),
        (['[{"element": "X0+", "occu": 1}]', '[{"element": "O", "occu": 2}]'], "bad-atomic-number"),
        (['[{"occu": 1}]', '[{"element": "O", "occu": 1}]'], "bad-structure"),
        (['{"element": "Si"}', '[{"element": "O", "occu": 1}]'], "bad-structure"),
        (['"S"', '[{"element": "O", "occu": 1}]'], "bad-structure"),
        (["null", '[{"element": "O", "occu": 1}]'], "bad-structure"),
    ],
)
def test_sites_that_are_not_one_whole_atom_are_refused(
    species: list[str], reason: str | None, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    sites = ", ".join(f'{{"species": {one}, "xyz": [0.0, 0.0, {place}]}}' for place, one in enumerate(species))
    frame = re.sub(r'"sites": \[.*?\]\}, "corr', f'"sites": [{sites}]}}, "corr', _frame())
    frame = frame.replace("[[0.5, 0, 0]]", "[[0.5, 0, 0], [0, 0, 0]]")
    (tmp_path / "a.json").write_text(f'{{"mp-1": {{"mp-1-0-0": {frame}, "mp-1-0-1": {_frame()}}}}}')
    reading = read_all("mptrj", tmp_path)
    assert reading.reasons == ({reason: 1} if reason else {})
    assert reading.total == 2
    if reason is None:
        assert [one.numbers.tolist() for one in reading.structures.values()] == [[14, 8], [14]]


def test_a_material_of_many_frames_comes_in_blocks_and_in_order(tmp_path: Path) -> None:
    bad = {0: "NaN", 999: "null", 1000: "-Infinity", 2100: '"text"', 2499: "[]"}
    frames = [f'"mp-1-0-{step}": {_frame(bad.get(step, f"-{step}.5"))}' for step in range(2500)]
    (tmp_path / "a.json").write_text(f'{{"mp-1": {{{", ".join(frames)}}}}}')
    reader = MPtrj()
    for collecting in (True, False):  # reading leaves the garbage collector as it was
        (gc.enable if collecting else gc.disable)()
        try:
            blocks = []
            for block in reader.read(*reader.plan(str(tmp_path), 1 << 30)):
                assert gc.isenabled() == collecting
                assert len(block.batch) == len(block.sources)
                assert len(block.sources) + len(block.rejects) <= BLOCK_STRUCTURES + 2
                blocks.append(block)
        finally:
            gc.enable()
        energies = np.concatenate([block.batch.columns["energy"] for block in blocks])
        assert energies.tolist() == [-step - 0.5 for step in range(2500) if step not in bad]
        rejects = [reject for block in blocks for reject in block.rejects]
        assert [(reject.source.rpartition("-")[2], reject.reason) for reject in rejects] == [
            ("0", "nan-energy"), ("999", "missing-energy"), ("1000", "infinite-energy"),
            ("2100", "bad-energy"), ("2499", "bad-energy"),
        ]  # fmt: skip


def test_a_damaged_material_id_never_gives_its_frames_to_another(
    tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    (tmp_path / "a.json").write_text(_file().replace('"mp-2": {', '"mq-2": {'))
    reading = read_all("mptrj", tmp_path)
    assert reading.reasons == {"bad-json": 3}
    assert {re.sub(r".*:/(mp-\d+)/.*", r"\1", source) for source in reading.structures} == {
        "mp-0",
        "mp-1",
        "mp-3",
    }


def test_packed_files_are_one_part(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    text = _file().encode()
    (tmp_path / "a.json.xz").write_bytes(lzma.compress(text))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(text)[:-30])
    reading = read_all("mptrj", tmp_path, part_bytes=100)
    assert len(reading.parts) == 2
    assert reading.reasons == {"truncated-file": 1}
    assert len(reading.structures) > 12
    (tmp_path / "a.json.xz").write_bytes(lzma.compress(text)[:60])  # nothing can be unpacked
    (tmp_path / "b.json.gz").unlink()
    with pytest.raises(CorruptDataError, match=r"a\.json\.xz.*EOFError"):
        read_all("mptrj", tmp_path)


@pytest.mark.parametrize("text", ["[]", "", "{}x", '{"a": 1}', '{"structure": {"mp-1": {}}}'])
def test_another_layout_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json.*MPtrj"):
        MPtrj().plan(str(tmp_path), 1000)
