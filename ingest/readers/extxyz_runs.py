"""Plain frames of extended XYZ as columns, by the options of the reader: at once what `ExtXyz` does singly."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gfm.data.units import ENERGY_UNITS, LENGTH_UNITS, PRESSURE_UNITS
from ingest.readers import scan
from ingest.readers.base import hash_id
from ingest.readers.columns import cells, number
from ingest.readers.extxyz_names import ENERGY_KEYS, FORCES_KEYS, NUMBERS_KEYS
from ingest.readers.records import MAX_Z, Refused, hill_formula
from ingest.readers.runs import Run

if TYPE_CHECKING:
    from ingest.readers.extxyz import ExtXyz

__all__ = ["run_columns", "wanted_keys"]

# Six numbers in Voigt's order, and nine with the columns first, as the rows of a tensor.
_VOIGT = [0, 5, 4, 5, 1, 3, 4, 3, 2]
_TRANSPOSED = [0, 3, 6, 1, 4, 7, 2, 5, 8]
_UNIT_KEYS = ("energy_unit", "forces_unit", "stress_unit")

Columns = dict[str, NDArray[Any]]
Masks = dict[str, NDArray[np.bool_]]


def wanted_keys(reader: "ExtXyz") -> dict[str, int]:
    """Return the header keys that the options ask for, with their kinds."""
    texts = (*_UNIT_KEYS, reader.group_key, reader.id_key)
    numbers = (*_energy_keys(reader), reader.stress_key, reader.virial_key, reader.charge_key, reader.spin_key)
    kinds = {key: scan.TEXT for key in texts if key} | {key: scan.NUMBERS for key in numbers if key}
    return {**kinds, "Lattice": scan.NUMBERS, "pbc": scan.TRUTHS}


def run_columns(reader: "ExtXyz", run: Run, name: str) -> tuple[Columns, Masks, NDArray[np.bool_]] | None:
    """Return the fields of all frames, who has the optional ones, and which frames must be looked at singly.

    None where the columns of the rows are not what they usually are.

    Args:
        reader: Its options say what keys and units mean.
        run: The frames (F).
        name: Name of the file, which tells the frames of several files apart.
    """
    columns = _atoms(reader, run)
    if columns is None:
        return None
    cell, pbc, odd = cells(run)
    cell = cell * LENGTH_UNITS[reader.length_unit]
    odd |= _odd_units(reader, run)
    energy, has_energy, unusual = _energy(reader, run)
    odd |= unusual | ~has_energy
    columns |= {"cell": cell, "pbc": pbc, "energy": energy * ENERGY_UNITS[reader.energy_unit]}
    masks: Masks = {}
    for field, key in (("charge", reader.charge_key), ("spin", reader.spin_key)):
        if key is not None:
            columns[field], masks[field], unusual = number(run, key)
            odd |= unusual
    columns["stress"], masks["stress"], unusual = _stress(reader, run, cell)
    odd |= unusual
    columns["group"], unnamed = _groups(reader, run, columns["numbers"])
    columns["key"], unknown = _keys(reader, run, name)
    return columns, masks, odd | unnamed | unknown


def _energy_keys(reader: "ExtXyz") -> tuple[str, ...]:
    return (reader.energy_key,) if reader.energy_key else ENERGY_KEYS


def _atoms(reader: "ExtXyz", run: Run) -> Columns | None:
    """Return the columns of the rows; None where they are unusual."""
    found = run.columns
    numbers = next((key for key in NUMBERS_KEYS if key in found), None)
    keys = (reader.forces_key,) if reader.forces_key else FORCES_KEYS
    forces = next((key for key in keys if key in found), None)
    if numbers is None or found[numbers][1].ndim != 1 or "pos" not in found:
        return None
    if numbers != "species" and found[numbers][0] not in "RI":
        return None
    if forces is None and reader.require_forces:
        return None
    columns: Columns = {"numbers": found[numbers][1]}
    factors = {
        "positions": ("pos", LENGTH_UNITS[reader.length_unit]),
        "forces": (forces, reader.forces_factor()),
    }
    for field, (key, factor) in factors.items():
        if key is None:
            continue
        kind, values = found[key]
        if kind not in "RI" or key == "species" or values.shape[1:] != (3,):
            return None
        with np.errstate(over="ignore"):
            columns[field] = values * factor
    kind, mask = found.get("move_mask", ("", np.empty(0)))
    if kind == "L" and mask.ndim == 1:
        columns["fixed"] = mask == 0.0
    return columns


def _energy(reader: "ExtXyz", run: Run) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the number of the first energy key that a frame has, who has one, and whose is unusual (F,)."""
    energy, has, odd = np.zeros(len(run)), np.zeros(len(run), dtype=bool), np.zeros(len(run), dtype=bool)
    for key in _energy_keys(reader):
        values, there, unusual = number(run, key)
        energy = np.where(there & ~has, values, energy)
        odd |= unusual & ~has
        has |= there
    return energy, has, odd


def _stress(
    reader: "ExtXyz", run: Run, cell: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return stresses (F, 3, 3), eV/angstrom^3, tension positive; who has one; whose is unusual (F,)."""
    stress, odd = np.zeros((len(run), 9)), np.zeros(len(run), dtype=bool)
    has = odd.copy()
    sign = 1.0 if reader.stress_sign == "tension" else -1.0
    for key, is_virial in ((reader.stress_key, False), (reader.virial_key, True)):
        if key is None or not (taken := run.has(key) & ~has).any():
            continue
        values, counts = run.of(key)
        odd |= taken & (counts != 6) & (counts != 9)
        tensor = np.where((counts == 6)[:, None], values[:, _VOIGT], values[:, _TRANSPOSED])
        tensor = np.where((taken & ~odd)[:, None], tensor, 0.0)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            if is_virial:
                volume = np.abs(np.linalg.det(cell))
                odd |= taken & ~(volume > 0.0)
                tensor = tensor * -ENERGY_UNITS[reader.energy_unit] / volume[:, None]
            else:
                tensor = tensor * PRESSURE_UNITS[reader.stress_unit] * sign
        stress[taken] = tensor[taken]
        has |= taken
    return stress.reshape(-1, 3, 3), has, odd


def _odd_units(reader: "ExtXyz", run: Run) -> NDArray[np.bool_]:
    """Return the frames whose header names units that contradict the options (F,)."""
    odd = np.zeros(len(run), dtype=bool)
    for key in _UNIT_KEYS:
        has = run.has(key)
        if has.any():
            texts = run.texts(key)
            contradicting = {text for text in set(texts) if not _agree(reader, key, text)}
            if contradicting:
                odd |= has & np.array([text in contradicting for text in texts])
    return odd


def _agree(reader: "ExtXyz", key: str, text: str) -> bool:
    try:
        reader.check_units({key: text})
    except Refused:
        return False
    return True


def _groups(reader: "ExtXyz", run: Run, numbers: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return what a split must not tear apart, and which frames do not say it (F,)."""
    if reader.group_key is not None:
        texts = [f"{reader.group_prefix}:{text}" for text in run.texts(reader.group_key)]
        return _hashed(texts), ~run.has(reader.group_key)
    kinds = np.clip(np.nan_to_num(numbers.astype(np.float64)), 0, MAX_Z).astype(np.int64)
    owners = np.repeat(np.arange(len(run)) * (MAX_Z + 1), np.diff(run.starts))
    counts = np.bincount(owners + kinds, minlength=len(run) * (MAX_Z + 1)).reshape(len(run), MAX_Z + 1)
    groups = [_formula_group(row.tobytes()) for row in counts.astype(np.int32)]
    return np.array(groups, dtype=np.uint64), np.zeros(len(run), dtype=bool)


@lru_cache(maxsize=4096)
def _formula_group(amounts: bytes) -> int:
    """Return the group of a formula, of which each atomic number's amount is given as int32."""
    counts = np.frombuffer(amounts, dtype=np.int32)
    return hash_id(f"formula:{hill_formula(np.repeat(np.arange(len(counts)), counts))}")


def _keys(reader: "ExtXyz", run: Run, name: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the keys, and which frames do not say what they are made of (F,)."""
    if reader.id_key is None:
        keys = [f"extxyz:{name}@{offset}" for offset in run.offsets]
        return _hashed(keys), np.zeros(len(run), dtype=bool)
    return _hashed([f"extxyz:{text}" for text in run.texts(reader.id_key)]), ~run.has(reader.id_key)


def _hashed(texts: list[str]) -> NDArray[np.uint64]:
    return np.array([hash_id(text) for text in texts], dtype=np.uint64)
