"""Extended XYZ in compiled code means what it means word by word, wherever the text is cut in memory."""

import io
import lzma
import random
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gfm.errors import CorruptDataError, DataError
from ingest.readers import runs, window
from ingest.readers.frame import Frame
from ingest.readers.runs import Run
from ingest.readers.text import read_frames

USUAL = "species:S:1:pos:R:3:forces:R:3"
HEADERS = (
    'Lattice="3 0 0 0 3.5 0 0 1 4" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 energy=-5',
    f'Properties={USUAL} energy=2e-3 stress="1 2 3 4 5 6" name="a b" Lattice="4 0 0 0 4 0 0 0 4"',
    "Properties=pos:R:3:Z:I:1:label:S:1:force:R:3 dft_energy=-7.123456789012345678 pbc='F F F' charge=-1",
    f"energy='5' Properties=\"{USUAL}\" name=x pbc=[True,True,False] Lattice=[3,0,0,0,3,0,0,0,3]",
    f'virial="1 2 3 2 5 6 3 6 9" energy=1 Energy=2 Properties={USUAL} Lattice="5 0 0 0 5 0 0 0 5" spin=2',
    'Properties=species:S:1:pos:R:3:forces:R:3 energy=1e39 comment="Properties=none energy=5" flag',
)
ROWS = ("{e} {x} T 0 {f}", "{e} {x} {f}", "{x} {z} word {f}", "{z}\t{x} {f}  ", "{e} {x} {f}", "  {e} {x} {f}")
ODDITIES = (
    "nan",
    "1e400",
    "1_0",
    "5e-324",
    "0.1234567890123456789012345",
    "1e39",
    "x",
    "-0.0",
    "+3.",
    "1.0 1.0",
    "",
)


def _text(rng: random.Random, num_frames: int, oddity: float) -> bytes:
    """Return frames of all kinds; now and then a number is odd."""

    def vector() -> str:
        numbers = [f"{rng.uniform(-9, 9):.8f}", repr(rng.uniform(-9, 9)), str(rng.randrange(9))]
        if rng.random() < oddity:
            numbers[rng.randrange(3)] = rng.choice(ODDITIES)
        return rng.choice([" ", "   ", "\t"]).join(numbers)

    frames = []
    kind = rng.randrange(len(HEADERS))
    for _ in range(num_frames):
        kind = rng.randrange(len(HEADERS)) if rng.random() < 0.3 else kind
        rows = [
            ROWS[kind].format(e=rng.choice(("H", "Cu", "O")), z=rng.randrange(1, 119), x=vector(), f=vector())
            for _ in range(rng.randrange(1, 6))
        ]
        blank = "\n" if rng.random() < 0.1 else ""
        end = "\r\n" if rng.random() < 0.1 else "\n"
        frames.append(f"{blank}{len(rows)}{end}{HEADERS[kind]}{end}{end.join(rows)}{end}")
    return "".join(frames).encode()


def _bytes(value: Any) -> bytes | None:
    return None if value is None else np.asarray(value).tobytes()


def _bits(reading: Any) -> dict[str, tuple[Any, ...]]:
    """Return every field of every structure as bytes."""
    fields = ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress", "charge", "spin", "fixed")
    return {
        source: (one.group, one.key, *(_bytes(getattr(one, name)) for name in fields))
        for source, one in reading.structures.items()
    }


@pytest.mark.parametrize("options", [
    {}, {"group_key": "name", "stress_key": None},
    {"length_unit": "bohr", "energy_unit": "kcal/mol", "stress_unit": "GPa"},
    {"require_forces": False, "energy_key": "energy", "stress_sign": "compression"},
])  # fmt: skip
def test_the_same_to_the_bit_as_word_by_word(
    options: dict[str, Any], tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    rng = random.Random(7)
    for number, oddity in enumerate((0.0, 0.02, 0.3)):
        path = tmp_path / f"{number}.xyz"
        path.write_bytes(_text(rng, 150, oddity))
        compiled = read_all("extxyz", path, **options)
        with pytest.MonkeyPatch.context() as patch:  # no frame is plain
            patch.setattr(runs.Scanner, "next", lambda *_: None)
            plain = read_all("extxyz", path, **options)
        assert list(compiled.structures) == list(plain.structures)
        assert _bits(compiled) == _bits(plain)
        assert compiled.rejects == plain.rejects
        assert compiled.total == 150
        assert oddity or len(compiled.structures) > 20


@pytest.mark.parametrize("stretch", [1, 37, 500, 5000])
def test_a_frame_may_lie_across_any_border(
    stretch: int, tmp_path: Path, read_all: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = _text(random.Random(8), 60, 0.02)
    (tmp_path / "a.xyz").write_bytes(text)
    (tmp_path / "b.xyz.xz").write_bytes(lzma.compress(text))
    whole = read_all("extxyz", tmp_path, part_bytes=2000)
    monkeypatch.setattr(window, "_STRETCH", stretch)
    monkeypatch.setattr(window, "_PIECE", stretch)
    pieces = read_all("extxyz", tmp_path, part_bytes=2000)
    assert _bits(pieces) == _bits(whole)
    assert pieces.rejects == whole.rejects


def _found(text: bytes) -> Iterator[Any]:
    return read_frames(io.BytesIO(text), {"Lattice": 1, "pbc": 2})


def test_plain_frames_come_as_runs_and_only_the_odd_one_singly() -> None:
    frame = b"1\nProperties=species:S:1:pos:R:3\nH 0 0 %s\n"
    found = list(_found(b"".join(frame % number for number in (b"1", b"2", b"nan", b"3", b"4"))))
    assert [len(one) if isinstance(one, Run) else one.rows for one in found] == [2, [b"H 0 0 nan\n"], 2]
    run = found[2]
    assert run.index == 3
    assert run.columns["pos"][1].tolist() == [[0.0, 0.0, 3.0], [0.0, 0.0, 4.0]]
    single = run.frame(1)
    assert single == Frame(4, 4 * len(frame % b"1") + 2, 1, b"Properties=species:S:1:pos:R:3\n", [b"H 0 0 4\n"])


def test_a_row_too_short_beside_one_too_long_is_no_frame(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    text = "2\nProperties=Z:I:1:pos:R:3:forces:R:3 energy=1\n1 2 3 4 5 6\n1 2 3 4 5 6 7 8\n"
    (tmp_path / "a.xyz").write_text(text)
    assert read_all("extxyz", tmp_path).reasons == {"bad-frame": 1}


def test_an_absurd_count_costs_no_memory() -> None:
    text = b"1000000\nProperties=species:S:1:pos:R:3:extra:R:90\n" + b"H 0 0 0\n" * 50
    list(_found(text))
    tracemalloc.start()
    (error,) = _found(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.reason == "truncated-file"
    assert peak < 8 << 20


def test_memory_follows_the_block_and_not_the_part(tmp_path: Path) -> None:
    """Bytes in use while a file is read do not grow with the file."""
    frame = (
        b"8\nProperties=species:S:1:pos:R:3:forces:R:3 energy=1\n"
        + b"H 0.12345678 0.5 0.25 0.125 1.0 2.0\n" * 8
    )
    peaks = []
    for copies in (5000, 20000):
        path = tmp_path / f"{copies}.xyz"
        path.write_bytes(frame * copies)
        tracemalloc.start()
        with path.open("rb") as stream:
            count = sum(len(run) for run in read_frames(stream, {"energy": 1}) if isinstance(run, Run))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == copies
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("reader", ["oc20", "extxyz"])
def test_a_tar_archive_is_named_as_such(reader: str, tmp_path: Path, read_all: Callable[..., Any]) -> None:
    (tmp_path / "0.txt").write_text("random1,frame1,0.0\n")
    with tarfile.open(tmp_path / "0.extxyz.xz", "w:xz") as archive:
        archive.add(tmp_path / "0.txt", arcname="0.txt")
    with pytest.raises(CorruptDataError, match=r"0\.extxyz\.xz: .*tar archive.*unpack"):
        read_all(reader, tmp_path / "0.extxyz.xz")
    (tmp_path / "0.extxyz.xz").rename(tmp_path / "all.tar.xz")
    with pytest.raises(DataError, match=r"all\.tar\.xz.*tar -xf"):
        read_all(reader, tmp_path / "all.tar.xz")


@pytest.mark.parametrize("line", ["random5,frame7,none", "random5,frame7"])
def test_text_without_reference_energies_has_total_energies_only(
    line: str, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    (tmp_path / "0.extxyz").write_text(
        "1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-3.5\nH 0 0 0 0 0 0\n"
    )
    (tmp_path / "0.txt").write_text(f"{line}\n")
    (one,) = read_all("oc20", tmp_path).structures.values()
    assert one.energy == -3.5
    assert read_all("oc20", tmp_path, energy="adsorption").reasons == {"bad-reference-energy": 1}
