"""The LMDB form of OC20 and OC22: keys b"0", b"1", ..., b"length"; values are pickled torch_geometric ``Data``.

Source: ``preprocess_ef.py`` (2021) and its successor (2024) in github.com/facebookresearch/fairchem.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gfm.data.structure import Structure
from gfm.errors import CorruptDataError, DataError
from ingest.readers.base import Block, Part, hash_id
from ingest.readers.lmdb_pages import LmdbFile, open_lmdb
from ingest.readers.lmdb_pickle import read_pickle, read_record
from ingest.readers.records import PERIODIC, BlockBuilder, Refused, atomic_numbers, check_structure

__all__ = ["UNITS", "plan_lmdb", "read_lmdb", "structure_of"]

UNITS: dict[str, str] = {
    "pos, cell": "angstrom; rows of cell are lattice vectors",
    "y or energy": "eV",
    "force or forces": "eV/angstrom, minus the gradient; of fixed atoms as computed",
    "fixed": "1 = held fixed, 0 = free",
}


def plan_lmdb(name: str, file: Path, part_bytes: int) -> list[Part]:
    """Cut the records of one file into parts.

    Args:
        name: Name of the reader.
        file: The LMDB file.
        part_bytes: Bytes of a part, about.

    Raises:
        CorruptDataError: It cannot be opened.
        DataError: It holds no record.
    """
    num_records = _num_records(file)
    if not num_records:
        raise DataError(f"{file}: no record in this LMDB; expected keys b'0', b'1', ...")
    size = file.stat().st_size
    step = max(1, part_bytes * num_records // max(size, 1))
    parts = []
    for start in range(0, num_records, step):
        stop = min(start + step, num_records)
        share = size * (stop - start) // num_records
        parts.append(Part(name, str(file), start, stop, share, f"{file.name} records {start}..{stop}"))
    return parts


def read_lmdb(part: Part, structure_from: Callable[[dict[str, Any]], Structure]) -> Iterator[Block]:
    """Read one part; ``structure_from`` makes a structure as `structure_of` does, or raises `Refused`.

    Raises:
        CorruptDataError: The file cannot be opened.
    """
    file = open_lmdb(Path(part.path))
    builder = BlockBuilder()
    for index in range(part.start, part.stop):
        source = f"{part.path}[{index}]"
        try:
            value = file.get(str(index).encode())
            if value is None:
                raise Refused("missing-record", f"there is no key b'{index}'")
            builder.offer(structure_from(read_record(value)), source, forces=False)
        except Refused as refused:
            builder.refuse(source, refused)
        if builder.full:
            yield builder.take()
    if builder:
        yield builder.take()


def structure_of(values: dict[str, Any], family: str, *, require_forces: bool) -> Structure:
    """Return the structure that a record describes; its numbers are still to be checked (`BlockBuilder.offer`).

    Args:
        values: Attributes of the pickled ``Data``.
        family: ``oc20`` or ``oc22``, the name space of its group and key.
        require_forces: Whether to refuse a record without forces.

    Raises:
        Refused: It cannot be a labelled structure.
    """
    for name in ("atomic_numbers", "pos", "cell"):
        if not isinstance(values.get(name), np.ndarray):
            raise Refused(f"missing-{name.replace('atomic_', '').replace('pos', 'positions')}", name)
    numbers = values["atomic_numbers"]
    try:
        structure = _assembled(values, family)
    except Refused:
        atomic_numbers(numbers)  # a wrong one is what a record is refused for first
        raise
    if numbers.ndim == 1 and structure.energy is not None and structure.forces is not None:
        return structure
    structure.numbers = atomic_numbers(numbers)
    return check_structure(structure, forces=require_forces)


def _assembled(values: dict[str, Any], family: str) -> Structure:
    """Return the structure of a record that has atomic numbers, positions and a cell.

    Raises:
        Refused: They do not fit together, or a number is none.
    """
    numbers = values["atomic_numbers"]
    natoms = _number(values, "natoms")
    if natoms is not None and natoms != numbers.size:
        raise Refused("bad-shape", f"natoms says {natoms:g}, atomic_numbers has {numbers.size}")
    if values["cell"].size != 9:
        raise Refused("bad-shape", f"cell {values['cell'].shape}, expected (1, 3, 3)")
    forces = values.get("forces") if values.get("forces") is not None else values.get("force")
    if forces is not None and not isinstance(forces, np.ndarray):
        raise Refused("bad-shape", "forces are no tensor")
    fixed = values.get("fixed")
    energy = _number(values, "energy")
    sid, fid = _number(values, "sid"), _number(values, "fid")
    if sid is None or fid is None:
        raise Refused("missing-id", "sid" if sid is None else "fid")
    if not all(isinstance(number, int) or math.isfinite(number) for number in (sid, fid)):
        raise Refused("missing-id", f"sid {sid}, fid {fid}")
    return Structure(
        numbers=numbers,
        positions=values["pos"],
        cell=values["cell"].reshape(3, 3).astype(np.float64),
        pbc=PERIODIC,
        energy=energy if energy is not None else _number(values, "y"),
        forces=forces,
        fixed=fixed != 0 if isinstance(fixed, np.ndarray) else None,
        group=hash_id(f"{family}:{int(sid)}"),
        key=hash_id(f"{family}:{int(sid)}/{int(fid)}"),
    )


def _number(values: dict[str, Any], name: str) -> float | int | None:
    """Return a value that writers keep as a number or as a tensor of one; None where there is none.

    Raises:
        Refused: It is something else.
    """
    value = values.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0].item()
    if value is None or isinstance(value, int | float):
        return value
    raise Refused("bad-shape", f"{name} is a {type(value).__name__}, expected one number")


def _num_records(file: Path) -> int:
    """Return how many records a file holds, believing b"length" only where the number of keys agrees."""
    opened = open_lmdb(file)
    announced = _announced(opened)
    if announced is not None and announced == opened.entries - 1:
        return announced
    try:
        keys = [int(key) for key in opened.all_keys() if key.isdigit()]
    except Refused as refused:
        raise CorruptDataError(f"{file}: not readable as LMDB: {refused.value}") from refused
    found = max(keys) + 1 if keys else 0
    # Keys with gaps: what is missing in between is written down, what a mad key announces is not.
    if found > 2 * len(keys) + 1000:
        raise DataError(f"{file}: {len(keys)} records, and yet a key of {found - 1}; expected b'0', b'1', ...")
    if announced is not None and announced <= 2 * len(keys) + 1000:
        return max(found, announced)
    return found


def _announced(file: LmdbFile) -> int | None:
    """Return the number of records that b"length" names; None where it cannot be read."""
    try:
        value = file.get(b"length")
        length = None if value is None else read_pickle(value)
    except Refused:
        return None
    return length if isinstance(length, int) else None
