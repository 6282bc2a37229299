"""Small valid files in every layout that is read, and which bytes of them belong to which record.

``spans`` names, by the end of a record's source, the stretches of the damaged file in which its numbers lie.
What lies in no record's stretch is the container's: where that is damaged, another record may be found under a
name, and only what every structure must be can be asked for.
"""

import gzip
import io
import json
import lzma
import pickle
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np

from ingest.sample_pickles import pyg1_pickle

Spans = dict[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Family:
    """One layout: how it is read, and a valid file of it.

    Attributes:
        reader: The reader.
        target: Name of the file that is damaged; also the path that is read unless ``path`` says otherwise.
        files: All its files by name.
        spans: Bytes of each record in the target, by the end of the record's source.
        kind: ``text`` (every byte belongs to a record), ``tree`` (a container around records), ``packed``.
        options: Of the reader.
        path: What is read.
        part_bytes: Size of a part.
        scratch: Whether it is unpacked before it is planned.
    """

    reader: str
    target: str
    files: dict[str, bytes]
    spans: Spans
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    part_bytes: int = 1 << 20
    scratch: bool = False

    @property
    def data(self) -> bytes:
        return self.files[self.target]


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _molecule(rng: np.random.Generator, atoms: int) -> dict[str, Any]:
    return {
        "numbers": rng.choice([1, 6, 7, 8, 29], atoms),
        "positions": 2.0 * rng.normal(size=(atoms, 3)),
        "cell": np.diag(rng.uniform(3.0, 9.0, 3)),
        "energy": float(rng.normal()) - 5.0,
        "forces": rng.normal(size=(atoms, 3)),
        "stress": rng.normal(size=6),
    }


# ---- text


def _xyz_frames(count: int = 8) -> list[bytes]:
    rng, frames = _rng(), []
    symbols = {1: "H", 6: "C", 7: "N", 8: "O", 29: "Cu"}
    for index in range(count):
        made = _molecule(rng, 2 + index % 3)
        lattice = " ".join(f"{value:.6f}" for value in made["cell"].reshape(-1))
        rows = [
            f"{symbols[int(number)]} {' '.join(f'{x:.8f}' for x in position)} {'TF'[row % 2]} 0 "
            f"{' '.join(f'{x:.8f}' for x in force)}\n"
            for row, (number, position, force) in enumerate(
                zip(made["numbers"], made["positions"], made["forces"], strict=True)
            )
        ]
        header = (
            f'Lattice="{lattice}" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 '
            f'energy={made["energy"]:.8f} free_energy={made["energy"]:.8f} name=f{index:04d} pbc="T T T"\n'
        )
        frames.append(f"{len(rows)}\n{header}{''.join(rows)}".encode())
    return frames


def _edges(pieces: list[bytes], start: int = 0) -> list[tuple[int, int]]:
    edges = np.cumsum([start, *map(len, pieces)]).tolist()
    return list(pairwise(edges))


def _zip(name: str, text: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), text)
    return stream.getvalue()


def _xyz_families() -> dict[str, Family]:
    frames = _xyz_frames()
    text, places = b"".join(frames), _edges(frames)
    spans = {f"@{begin}": [(begin, end)] for begin, end in places}
    options = {"id_key": "name"}
    packed = {"gz": gzip.compress(text, mtime=0), "xz": lzma.compress(text), "zip": _zip("a.xyz", text)}
    found = {
        f"extxyz-{kind}": Family("extxyz", f"a.xyz.{kind}", {f"a.xyz.{kind}": data}, {}, "packed", options)
        for kind, data in packed.items()
    }
    found["extxyz"] = Family("extxyz", "a.xyz", {"a.xyz": text}, spans, "text", options, part_bytes=700)
    lines = [f"random{9 + index // 2},frame{index},{-3.5 + index}\n".encode() for index in range(len(frames))]
    sidecar = b"".join(lines)
    plain = {"0.extxyz": text, "0.txt": sidecar}
    both = {"0.extxyz.xz": lzma.compress(text), "0.txt.xz": lzma.compress(sidecar)}
    by_index = {f"[{index}]": [place] for index, place in enumerate(places)}
    by_line = {f"[{index}]": [place] for index, place in enumerate(_edges(lines))}
    adsorption = {"energy": "adsorption"}
    found |= {
        "oc20-text": Family("oc20", "0.extxyz", plain, by_index, "sequence"),
        "oc20-sidecar": Family("oc20", "0.txt", plain, by_line, "sequence", adsorption, "0.extxyz"),
        "oc20-xz": Family("oc20", "0.extxyz.xz", both, {}, "packed"),
        "oc20-sidecar-xz": Family("oc20", "0.txt.xz", both, {}, "packed", adsorption, "0.extxyz.xz"),
    }
    return found


def _mptrj_families() -> dict[str, Family]:
    rng, pieces, spans = _rng(), [], {}
    at = 1
    for material in range(4):
        head = f'{", " if material else ""}"mp-{70 + material}": {{'
        begin, at = at, at + len(head)
        pieces.append(head)
        for frame in range(2):
            made = _molecule(rng, 2 + frame)
            sites = [
                {"species": [{"element": {1: "H", 6: "C", 7: "N", 8: "O", 29: "Cu"}[int(number)], "occu": 1}],
                 "xyz": position.round(6).tolist(), "properties": {"magmom": None}}
                for number, position in zip(made["numbers"], made["positions"], strict=True)
            ]  # fmt: skip
            value = {
                "structure": {"lattice": {"matrix": made["cell"].round(6).tolist()}, "sites": sites},
                "corrected_total_energy": made["energy"],
                "force": made["forces"].round(6).tolist(),
                "stress": np.diag(made["stress"][:3]).round(6).tolist(),
            }
            name = f"mp-{70 + material}-0-{frame}"
            piece = f'{", " if frame else ""}"{name}": {json.dumps(value)}'
            # Without the material's id a frame belongs to the material before.
            spans[f"/mp-{70 + material}/{name}"] = [(at, at + len(piece)), (begin, begin + len(head))]
            pieces.append(piece)
            at += len(piece)
        pieces.append("}")
        at += 1
    text = f"{{{''.join(pieces)}}}".encode()
    found = {"mptrj": Family("mptrj", "a.json", {"a.json": text}, spans, "text", part_bytes=900)}
    for kind, data in {"gz": gzip.compress(text, mtime=0), "xz": lzma.compress(text)}.items():
        found[f"mptrj-{kind}"] = Family("mptrj", f"a.json.{kind}", {f"a.json.{kind}": data}, {}, "packed")
    return found


# ---- LMDB and pickles


def _lmdb(folder: Path, values: dict[bytes, bytes]) -> bytes:
    path = folder / "made.lmdb"
    path.unlink(missing_ok=True)
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 22) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)
    return path.read_bytes().rstrip(b"\0").ljust(_used(path), b"\0")


def _used(path: Path) -> int:
    with lmdb.open(str(path), subdir=False, lock=False, readonly=True) as environment:
        return 4096 * int(environment.info()["last_pgno"] + 1)


def oc_record(index: int, rng: np.random.Generator, atoms: int) -> bytes:
    """Return the pickle of one record of OC22."""
    made = _molecule(rng, atoms)
    return pyg1_pickle(
        {
            "y": made["energy"],
            "pos": made["positions"].astype(np.float32),
            "cell": made["cell"].astype(np.float32)[None],
            "atomic_numbers": made["numbers"].astype(np.float32),
            "natoms": atoms,
            "force": made["forces"].astype(np.float32),
            "fixed": (np.arange(atoms) % 2).astype(np.float32),
            "sid": 100 + index,
            "fid": index,
        }
    )


def _lmdb_families(folder: Path) -> dict[str, Family]:
    rng = _rng()
    # Small records lie in leaves, large ones in pages of their own; many make the tree two levels deep.
    records = [oc_record(index, rng, 3 if index % 5 else 120) for index in range(12)]
    values = {str(index).encode(): record for index, record in enumerate(records)}
    data = _lmdb(folder, values | {b"length": pickle.dumps(len(records), protocol=4)})
    spans = {f"[{index}]": _found(data, record) for index, record in enumerate(records)}
    found = {
        name: Family(name, "a.lmdb", {"a.lmdb": data}, spans, "tree", part_bytes=9000)
        for name in ("oc20", "oc22")
    }
    rows = {}
    for index in range(1, 13):
        packed = zlib.compress(_json_row(_molecule(rng, 3 if index % 5 else 80), index).encode())
        rows[str(index).encode()] = packed
    data = _lmdb(folder, rows | {b"nextid": zlib.compress(b"13"), b"deleted_ids": zlib.compress(b"[]")})
    spans = {f"[{key.decode()}]": _found(data, value) for key, value in rows.items()}
    found["aselmdb"] = Family("ase_db", "a.aselmdb", {"a.aselmdb": data}, spans, "tree", part_bytes=9000)
    return found


def _found(data: bytes, piece: bytes) -> list[tuple[int, int]]:
    """Return where a value stands: LMDB leaves copies behind in pages that it has split."""
    found = [(match.start(), match.end()) for match in re.finditer(re.escape(piece), data)]
    assert found
    return found


# ---- ASE databases


def _json_row(made: dict[str, Any], index: int) -> str:
    def array(values: Any, dtype: str) -> dict[str, Any]:
        values = np.asarray(values)
        return {"__ndarray__": [list(values.shape), dtype, values.reshape(-1).tolist()]}

    return json.dumps(
        {
            "unique_id": f"{index:032x}",
            "numbers": array(made["numbers"], "int64"),
            "positions": array(made["positions"], "float64"),
            "cell": array(made["cell"], "float64"),
            "pbc": array([True, True, False], "bool"),
            "energy": made["energy"],
            "forces": array(made["forces"], "float64"),
            "stress": array(made["stress"], "float64"),
            "key_value_pairs": {"charge": index % 2},
            "data": {},
        }
    )


def _ase_families(folder: Path) -> dict[str, Family]:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db import connect

    rng = _rng()
    for suffix in ("db", "json"):
        (folder / f"made.{suffix}").unlink(missing_ok=True)
    with connect(folder / "made.db") as sqlite, connect(folder / "made.json") as lined:
        for index in range(24):
            made = _molecule(rng, 3)
            atoms = Atoms(made["numbers"], made["positions"], cell=made["cell"], pbc=True)
            labels = {name: made[name] for name in ("energy", "forces", "stress")}
            atoms.calc = SinglePointCalculator(atoms, **labels)
            sqlite.write(atoms, place=index)
            if index < 8:
                lined.write(atoms, place=index)
    data = (folder / "made.db").read_bytes()
    starts = [data.index(_blob(data, index)) for index in range(24)]
    spans: Spans = {f"[{index + 1}]": [(start, start + 72)] for index, start in enumerate(starts)}
    text = (folder / "made.json").read_bytes()
    heads = [match.start() + 1 for match in re.finditer(rb'[\n{]"\d+": \{\n', text)]
    ends = [*heads[1:], text.index(b'"ids"') if b'"ids"' in text else len(text)]
    lines: Spans = {f"[{index + 1}]": [place] for index, place in enumerate(zip(heads, ends, strict=True))}
    return {
        "ase-sqlite": Family("ase_db", "a.db", {"a.db": data}, spans, "tree", part_bytes=6000),
        "ase-json": Family("ase_db", "a.json", {"a.json": text}, lines, "text", part_bytes=2000),
    }


def _blob(data: bytes, index: int) -> bytes:
    """Return the positions of a row as they stand in the file."""
    rng = _rng()
    for _ in range(index + 1):
        made = _molecule(rng, 3)
    return np.asarray(made["positions"], dtype="<f8").tobytes()


# ---- HDF5


def _write(h5: h5py.File, group: str, spans: Spans, sources: list[str], arrays: dict[str, Any]) -> None:
    """Write arrays over the conformers, or one for all, and note where the rows lie."""
    for name, values in arrays.items():
        values = np.asarray(values)
        dataset = h5.create_dataset(f"{group}/{name}", data=values)
        start, size = dataset.id.get_offset(), dataset.id.get_storage_size()
        if start is None or not values.ndim or len(values) != len(sources):
            pieces = [(start, start + size)] * len(sources) if start is not None else []
        else:
            step = size // len(values)
            pieces = [(start + row * step, start + (row + 1) * step) for row in range(len(values))]
        for source, piece in zip(sources, pieces, strict=False):
            spans.setdefault(source, []).append(piece)


def _conformers(rng: np.random.Generator, atoms: int, rows: int) -> dict[str, Any]:
    return {
        "numbers": rng.choice([1, 6, 7, 8], atoms).astype(np.uint8),
        "positions": 2.0 * rng.normal(size=(rows, atoms, 3)),
        "energy": rng.normal(size=rows) - 40.0,
        "forces": rng.normal(size=(rows, atoms, 3)),
    }


_LAYOUTS = {
    "ani1x": ("", ("atomic_numbers", "coordinates", "wb97x_dz.energy", "wb97x_dz.forces")),
    "transition1x": (
        "data/",
        ("atomic_numbers", "positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"),
    ),
    "spice": ("", ("atomic_numbers", "conformations", "dft_total_energy", "dft_total_gradient")),
}


def _hdf5_families(folder: Path) -> dict[str, Family]:
    found = {}
    for layout, (root, keys) in _LAYOUTS.items():
        rng = _rng()
        spans: Spans = {}
        path = folder / "made.h5"
        with h5py.File(path, "w") as h5:
            for index, formula in enumerate(("C2H2", "CH4", "H2O1", "N2")):
                made = _conformers(rng, 2 + index, 3)
                name = f"{root}{formula}{'/rxn0' if layout == 'transition1x' else ''}"
                sources = [f"/{name}[{row}]" for row in range(3)]
                _write(h5, name, spans, sources, dict(zip(keys, made.values(), strict=True)))
        options = {} if layout == "ani1x" else {"layout": layout}
        reader = "ani1x" if layout == "ani1x" else "hdf5"
        found[layout] = Family(
            reader, "a.h5", {"a.h5": path.read_bytes()}, spans, "tree", options, part_bytes=400
        )
    rng, path = _rng(), folder / "made.h5"
    with h5py.File(path, "w", libver="latest") as h5:
        for index in range(3):
            made = _conformers(rng, 2 + index, 6)
            group = h5.create_group(f"g{index}")
            group["atomic_numbers"] = made["numbers"]
            for key in ("positions", "energy", "forces"):
                group.create_dataset(
                    key, data=made[key], chunks=(2, *made[key].shape[1:]), compression="gzip", shuffle=True
                )
    found["hdf5-chunked"] = Family("hdf5", "a.h5", {"a.h5": path.read_bytes()}, {}, "tree", part_bytes=400)
    return found | _qm7x_families(folder)


def _qm7x_families(folder: Path) -> dict[str, Family]:
    rng, path = _rng(), folder / "made.h5"
    spans: Spans = {}
    with h5py.File(path, "w") as h5:
        for molecule in range(3):
            for frame in range(3):
                made = _conformers(rng, 3, 1)
                name = f"{molecule + 1}/Geom-m{molecule + 1}-i1-c1-d{frame}"
                arrays = {
                    "atNUM": made["numbers"], "atXYZ": made["positions"][0],
                    "ePBE0+MBD": made["energy"], "totFOR": made["forces"][0],
                }  # fmt: skip
                for key, values in arrays.items():
                    dataset = h5.create_dataset(f"{name}/{key}", data=values)
                    start = dataset.id.get_offset()
                    spans.setdefault(f"/{name}", []).append((start, start + dataset.id.get_storage_size()))
    data = path.read_bytes()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo("1000.hdf5")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    options = {"duplicates": None}
    found = {"qm7x": Family("qm7x", "1000.hdf5", {"1000.hdf5": data}, spans, "tree", options, part_bytes=5000)}
    packed = {"xz": lzma.compress(data), "tar": stream.getvalue(), "tar.xz": lzma.compress(stream.getvalue())}
    for kind, content in packed.items():
        found[f"qm7x-{kind}"] = Family(
            "qm7x", f"1000.{kind}", {f"1000.{kind}": content}, {}, "packed", options, scratch=True
        )
    # A tar has no sum of what it holds; it is the file, moved.
    found["qm7x-tar"] = replace(
        found["qm7x-tar"], kind="tree",
        spans={name: [(a + 512, b + 512) for a, b in pieces] for name, pieces in spans.items()},
    )  # fmt: skip
    return found


def families(folder: Path) -> dict[str, Family]:
    """Return a small valid file of every layout, by name; files are made in a folder."""
    return {
        **_xyz_families(),
        **_mptrj_families(),
        **_lmdb_families(folder),
        **_ase_families(folder),
        **_hdf5_families(folder),
    }
