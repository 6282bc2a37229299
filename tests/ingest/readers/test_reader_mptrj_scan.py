"""MPtrj in compiled code: what it reads is what Python reads, to the bit; what is odd it leaves to Python."""

import gzip
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfm.errors import GfmError
from ingest.readers.mptrj import MPtrj
from ingest.readers.mptrj_scan import MaterialScanner

LABEL = "corrected_total_energy"
NUMBERS = """0 -0 -0.0 0.0 00 01 1. 1.e5 .5 +1 1e5 1E+05 1e-7 1e999 1e-400 5e-324 2.2250738585072014e-308
    0x10 1e 1e+ - 1_0 9007199254740993 9223372036854775808 18446744073709551616 3.4e38 3.5e38 1e308 1e100
    -0e0 2e0 1.0 123456789012345678901234567890 0.1234567890123456789012345 1.0000000000000000000000001
    NaN Infinity -Infinity null true false "1.0" "x" [] {} [1] [1,] {"a":} [1,2,3]"""
VALUES = [*NUMBERS.split(), "1" + "0" * 400, *("[" * depth + "]" * depth for depth in (59, 70, 2000))]
TEXTS = ["", "é", "\\u00e9", '\\"', '\\"}', "{}", "}", "]", ",", "\\\\", "\\n", "\t", "\x7f", "\x00", "\\ud800"]
KEYS = [
    "xyz",
    "species",
    "element",
    "occu",
    "structure",
    "lattice",
    "matrix",
    "sites",
    "force",
    "stress",
    LABEL,
]
BLANKS = ["", " ", "\n", "\t\r\n  "]


class _InPython(MPtrj):
    """The reader without compiled code."""

    def _frames(self, material: Any, scanner: Any) -> Any:
        return self._parsed(material)


class _Raw(str):
    """JSON that is written as it is; as a key, too."""


def _site(element: str, xyz: list[float]) -> dict[str, Any]:
    species = [{"element": element, "occu": 1}]
    return {"species": species, "abc": [0.1, -2e-17, 0], "xyz": xyz, "label": element, "properties": {}}


def _frame(rng: random.Random, num_atoms: int) -> dict[str, Any]:
    def vectors(count: int) -> list[list[float]]:
        return [[rng.gauss(0, 1) * 10.0 ** rng.randint(-9, 3) for _ in range(3)] for _ in range(count)]

    sites = [_site(rng.choice(["Si", "O", "Og", "U"]), xyz) for xyz in vectors(num_atoms)]
    lattice = {"matrix": [[3.5, 0.0, 0.1], [0, 4, -0.0], [rng.random(), 0.0, 5.0]], "pbc": [True] * 3, "a": 3.5}
    structure = {"@class": "Structure", "charge": None, "lattice": lattice, "properties": {}, "sites": sites}
    labels = {LABEL: rng.gauss(-9, 9), "force": vectors(num_atoms), "stress": vectors(3)}
    return {"structure": structure, **labels, "magmom": None, "bandgap": 0.0, "mp_id": "mp-1"}


def _materials(rng: random.Random) -> dict[str, Any]:
    return {
        f"mp-{m}": {f"mp-{m}-0-{f}": _frame(rng, rng.randint(1, 3)) for f in range(rng.randint(0, 3))}
        for m in range(rng.randint(1, 3))
    }


def _dump(value: Any, blank: Callable[[], str]) -> str:
    """Write JSON with blanks of any kind wherever there may be some."""
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, dict):
        entries = [
            f"{_dump(key, blank)}{blank()}:{blank()}{_dump(entry, blank)}" for key, entry in value.items()
        ]
        return f"{{{blank()}{f'{blank()},{blank()}'.join(entries)}{blank()}}}"
    if isinstance(value, list):
        return f"[{blank()}{f'{blank()},{blank()}'.join(_dump(entry, blank) for entry in value)}{blank()}]"
    return json.dumps(value)


def _shuffled(value: Any, rng: random.Random) -> Any:
    """Return the value with the keys of every object in another order."""
    if isinstance(value, dict):
        keys = rng.sample(list(value), len(value))
        return {key: _shuffled(value[key], rng) for key in keys}
    return [_shuffled(entry, rng) for entry in value] if isinstance(value, list) else value


def _containers(value: Any) -> Iterator[Any]:
    """Yield each list and object in a tree that holds something."""
    if isinstance(value, dict | list) and value:
        yield value
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _containers(entry)


def _spoil(value: Any, rng: random.Random) -> None:
    """Change one thing anywhere in a tree: leave it out, put something else there, or put it there twice."""
    place = rng.choice(list(_containers(value)) or [{"": None}])
    key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    other = _Raw(rng.choice([*VALUES, *(f'"{text}"' for text in TEXTS)]))
    change = rng.randrange(4)
    if change == 0:
        del place[key]
    elif change == 1:
        place[key] = other
    elif isinstance(place, list):
        place.insert(key, place[key] if change == 2 else other)
    else:
        twice = json.dumps(key) if change == 2 else f'"{rng.choice([*KEYS, *TEXTS])}"'
        place[_Raw(twice)] = rng.choice([place[key], other])


def _read(reader: MPtrj, path: Path, part_bytes: int = 1 << 30) -> list[Any]:
    """Return all that a reader makes of a file, as bytes."""
    found: list[Any] = []
    try:
        for part in reader.plan(str(path), part_bytes):
            for block in reader.read(part):
                columns = {
                    name: (str(c.dtype), c.shape, c.tobytes()) for name, c in block.batch.columns.items()
                }
                arrays = columns, block.batch.offsets.tobytes(), block.batch.present.tobytes()
                found.append((block.sources, block.rejects, arrays))
    except GfmError as error:
        found.append(str(error))
    return found


def _agree(text: bytes, part_bytes: int = 1 << 30, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.json")
        path.write_bytes(text)
        assert _read(MPtrj(**options), path, part_bytes) == _read(_InPython(**options), path, part_bytes)


def _scan(frames: dict[str, Any]) -> Any:
    return MaterialScanner(LABEL).structures("mp-1", json.dumps(frames).encode())


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 60), st.integers(0, 3), st.booleans())
def test_what_is_spoilt_is_read_as_in_python(seed: int, changes: int, forces: bool) -> None:
    rng = random.Random(seed)
    tree = _shuffled(_materials(rng), rng) if rng.random() < 0.5 else _materials(rng)
    for _ in range(changes):
        _spoil(tree, rng)
    text = bytearray(_dump(tree, lambda: rng.choice(BLANKS)).encode("utf-8", "surrogatepass"))
    for _ in range(rng.choice([0, 0, 1, 3])):  # a byte replaced, put in, or taken away
        place = rng.randrange(len(text))
        text[place : place + rng.randrange(2)] = rng.choice(
            [b"", bytes([rng.choice(b'019{}[],:"\\ -.eE\0\xff\n')])]
        )
    if rng.random() < 0.1:
        del text[rng.randrange(len(text)) :]
    _agree(bytes(text), rng.choice([500, 1 << 30]), require_forces=forces)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 60))
def test_neither_blanks_nor_the_order_of_keys_matter(seed: int) -> None:
    rng = random.Random(seed)
    frames = {f"mp-1-0-{step}": _frame(rng, rng.randint(1, 3)) for step in range(3)}
    scanner = MaterialScanner(LABEL)
    usual = dict(scanner.structures("mp-1", json.dumps(frames).encode()) or ())
    assert len(usual) == 3
    other = _shuffled(frames, rng)
    for text in (
        _dump(other, lambda: rng.choice(BLANKS)),
        json.dumps(other, indent=2),
        json.dumps(other, separators=(",", ":")),
    ):
        found = dict(scanner.structures("mp-1", text.encode()) or ())
        assert list(found) == list(other)
        for name, one in found.items():
            for field in ("numbers", "positions", "cell", "forces", "stress"):
                assert getattr(one, field).tobytes() == getattr(usual[name], field).tobytes()
            assert (one.energy, one.group, one.key) == (usual[name].energy, usual[name].group, usual[name].key)


def _changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    frame = _frame(random.Random(0), 2)
    change(frame)
    return {"mp-1-0-0": _frame(random.Random(1), 1), "mp-1-0-1": frame}


def _first_site(frame: dict[str, Any]) -> dict[str, Any]:
    site: dict[str, Any] = frame["structure"]["sites"][0]
    return site


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: None,
        lambda frame: frame.update({"stress": None, "force": None, LABEL: None}),
        lambda frame: [frame.pop(key) for key in ("stress", "force", LABEL)],
        lambda frame: frame.update(other="a {mp-7: [}", more={"force": 1, "x": [[], {}, [True, {"y": None}]]}),
        lambda frame: _first_site(frame)["species"][0].update(occu=1.0, oxidation_state=2),
        lambda frame: frame["structure"]["lattice"].update(structure=5, force={}),
    ],
)
def test_what_is_plain_needs_no_python(change: Callable[[Any], None]) -> None:
    assert len(dict(_scan(_changed(change)))) == 2
    _agree(json.dumps({"mp-1": _changed(change)}).encode(), require_forces=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.pop("structure"),
        lambda frame: frame.update(structure=None),
        lambda frame: frame.update(stress=[[0.0] * 3] * 2),
        lambda frame: frame.update(stress=[0.0] * 6),
        lambda frame: frame["force"].pop(),
        lambda frame: frame["force"][0].append(1.0),
        lambda frame: frame.update({LABEL: True}),
        lambda frame: frame.update({LABEL: float("nan")}),
        lambda frame: frame.update({LABEL: 5e-324}),
        lambda frame: frame.update(other="é"),
        lambda frame: frame.update(other='"'),
        lambda frame: frame["structure"].update(sites=[]),
        lambda frame: frame["structure"]["lattice"]["matrix"].pop(),
        lambda frame: _first_site(frame).pop("xyz"),
        lambda frame: _first_site(frame).update(species=[]),
        lambda frame: _first_site(frame)["species"].append({"element": "O", "occu": 1}),
        lambda frame: _first_site(frame)["species"][0].update(occu=0.5),
        lambda frame: _first_site(frame)["species"][0].pop("occu"),
        lambda frame: _first_site(frame)["species"][0].update(element="D"),
        lambda frame: _first_site(frame)["species"][0].update(element="O2-"),
    ],
)
def test_what_is_unusual_is_left_to_python(change: Callable[[Any], None]) -> None:
    assert _scan(_changed(change)) is None
    _agree(json.dumps({"mp-1": _changed(change)}).encode())


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_there_twice_is_left_to_python(key: str) -> None:
    text = json.dumps({"mp-1": {"mp-1-0-0": _frame(random.Random(0), 2)}})
    assert f'"{key}": ' in text
    twice = text.replace(f'"{key}": ', f'"{key}": null, "{key}": ', 1)
    assert MaterialScanner(LABEL).structures("mp-1", twice[9:-1].encode()) is None
    assert MaterialScanner(LABEL).structures("mp-1", text[9:-1].encode()) is not None
    _agree(twice.encode())
    frame = json.dumps(_frame(random.Random(0), 1))
    _agree(f'{{"mp-1": {{"a": {frame}, "b": {frame}, "a": {frame}}}}}'.encode())


def test_arrays_grow_and_are_not_shared_by_materials() -> None:
    rng = random.Random(0)
    scanner = MaterialScanner(LABEL)
    sizes = [2, 400, 1, 900, 3]
    frames = [{f"mp-{size}-0-0": _frame(rng, size), "x": _frame(rng, 1)} for size in sizes]
    found = [list(scanner.structures("mp-1", json.dumps(one).encode()) or ()) for one in frames]
    for material, ((_, first), (_, second)) in zip(frames, found, strict=True):
        for structure, frame in zip((first, second), material.values(), strict=True):
            assert structure.positions.tolist() == [site["xyz"] for site in frame["structure"]["sites"]]
            assert structure.forces is not None
            assert structure.forces.tolist() == frame["force"]


def test_there_is_room_for_the_shortest_frames() -> None:
    site = '{"species":[{"element":"O","occu":1}],"xyz":[0,0,0]}'
    lattice = '{"matrix":[[9,0,0],[0,9,0],[0,0,9]]}'
    structure = f'{{"lattice":{lattice},"sites":[{",".join([site] * 3)}]}}'
    frames = ",".join(f'"{step}":{{"structure":{structure}}}' for step in range(4000))
    assert len(dict(MaterialScanner(LABEL).structures("mp-1", f"{{{frames}}}".encode()) or ())) == 4000
    frames = frames.replace(",".join([site] * 3), site)
    assert len(dict(MaterialScanner(LABEL).structures("mp-1", f"{{{frames}}}".encode()) or ())) == 4000


@pytest.mark.data
@pytest.mark.parametrize(
    "file",
    [
        "synthetic-mptrj/MPtrj_2022.9_full.json",
        "mptrj-excerpt-native/MPtrj_excerpt_11frames_full_fields.json",
        "mptrj-excerpt-native/MPtrj_excerpt_random-1k_uncorrected_only.json.gz",
    ],
)
def test_published_frames_are_plain(file: str, shared_data: Path) -> None:
    data = (shared_data / file).read_bytes()
    scanner = MaterialScanner("uncorrected_total_energy")
    for material, frames in json.loads(gzip.decompress(data) if file.endswith(".gz") else data).items():
        assert len(dict(scanner.structures(material, json.dumps(frames).encode()) or ())) == len(frames)
    for label in (LABEL, "uncorrected_total_energy"):
        options: dict[str, Any] = {"label": label}
        assert _read(MPtrj(**options), shared_data / file) == _read(_InPython(**options), shared_data / file)
