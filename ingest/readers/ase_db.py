"""ASE databases: SQLite (``.db``), LMDB (``.aselmdb``: OMat24, sAlex, OMol25) and JSON, with keys and units.

Rows are decoded straight to arrays; no Atoms are made, nothing is unpickled. ASE writes what the calculator
held: forces on fixed atoms are raw if it was the calculator that computed them, and zero if the writer had
copied them out of constrained Atoms before. Neither is changed here, and the mask is kept.

Source: ``ase/db`` in gitlab.com/ase/ase; the units in a database's metadata: schnetpack's ``ASEAtomsData``.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gfm.data.structure import Structure
from gfm.data.units import ENERGY_UNITS, FORCES_UNITS, LENGTH_UNITS, PRESSURE_UNITS, UNIT_SPELLINGS
from gfm.errors import CorruptDataError, DataError
from ingest.readers.ase_files import container_of, metadata_of, ranges_of, rows_of
from ingest.readers.ase_rows import Row
from ingest.readers.base import Block, Part, find_files, hash_id
from ingest.readers.records import BlockBuilder, Refused, atomic_numbers, hill_formula
from ingest.readers.stated import StatedUnits

__all__ = ["AseDb"]

_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # where xx yy zz yz xz xy stand in a tensor


class AseDb(StatedUnits):
    """Reads ``*.db``, ``*.aselmdb`` and ``*.json`` databases as ASE writes them.

    A key is looked for among the row's own properties, then in its key-value pairs, then in its data;
    ``data.KEY`` and ``key_value_pairs.KEY`` say the place.

    Attributes:
        energy_key: Key of the energy.
        forces_key: Key of the forces.
        stress_key: Key of the stress, 3x3 or in Voigt's order (xx yy zz yz xz xy). Null: none.
        charge_key: Key of the total charge among key-value pairs and data, if it is there. Null: none.
        spin_key: Key of the multiplicity 2S+1 among key-value pairs and data, if it is there. Null: none.
        group_key: Key of what a split must not tear apart (a trajectory, a material); by default all
            structures of one formula belong together.
        group_prefix: Name space of the group, so that one material is one group in several sources (``mp``).
        id_key: Key of a unique id; by default file name and the row's number.
        require_forces: Whether a row without forces is refused.
    """

    NAME: ClassVar[str] = "ase_db"
    UNITS: ClassVar[dict[str, str]] = {
        "energy": "option energy_unit (default eV), total unless option energy_kind says otherwise",
        "forces": "option forces_unit (default energy_unit/length_unit), minus the gradient",
        "stress": "option stress_unit (default eV/angstrom^3), option stress_sign (default tension positive)",
        "positions, cell": "option length_unit (default angstrom); rows of cell are lattice vectors",
        "charge": "e",
        "constraints": "FixAtoms = held fixed; other constraints hold no atom as a whole",
    }  # fmt: skip
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "stress", "charge", "spin", "fixed")

    energy_key: str = "energy"
    forces_key: str = "forces"
    stress_key: str | None = "stress"
    charge_key: str | None = "charge"
    spin_key: str | None = "spin"
    group_key: str | None = None
    group_prefix: str = "asedb"
    id_key: str | None = None
    require_forces: bool = True

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut every database into ranges of ids; a JSON database into ranges of bytes.

        Raises:
            MissingDataError: There is no file.
            DataError: A file has no rows or is no ASE database, or its metadata and the options name
                different units.
        """
        parts: list[Part] = []
        for file in find_files(path, (".aselmdb", ".db", ".json"), "ASE databases"):
            try:
                parts += self._plan_file(file, part_bytes)
            except CorruptDataError as error:
                parts.append(self.unreadable(file, str(error).removeprefix(f"{file}: ")))
        return parts

    def _plan_file(self, file: Path, part_bytes: int) -> list[Part]:
        container = container_of(file)
        ranges = ranges_of(file, container, part_bytes)
        self._check_units(file, metadata_of(file, container))
        share = file.stat().st_size // len(ranges)
        what = "bytes" if container == "json" else "rows"
        return [
            Part(
                self.NAME, str(file), start, stop, share, f"{file.name} {what} {start}..{stop}",
                {"container": container},
            )
            for start, stop in ranges
        ]  # fmt: skip

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part.

        Raises:
            CorruptDataError: The file cannot be opened.
            DataError: It is no ASE database.
        """
        file = Path(part.path)
        name = "/".join(file.absolute().parts[-2:])
        builder = BlockBuilder()
        for row_id, row in rows_of(file, part.extra["container"], part.start, part.stop):
            source = f"{file}[{row_id}]"
            try:
                if isinstance(row, Refused):
                    raise row
                structure = self._structure(row, f"{name}[{row_id}]")
                builder.offer(structure, source, forces=self.require_forces)
            except Refused as refused:
                builder.refuse(source, refused)
            if builder.full:
                yield builder.take()
        if builder:
            yield builder.take()

    def _structure(self, row: Row, name: str) -> Structure:
        """Return what one row says, which is called ``name`` where it has no id of its own.

        Raises:
            Refused: Something in it cannot be what it should be.
        """
        numbers, positions = row.own("numbers"), row.own("positions")
        if numbers is None or positions is None:
            raise Refused("missing-numbers" if numbers is None else "missing-positions")
        if numbers.size == 0:
            raise Refused("no-atoms")
        if numbers.ndim != 1:
            raise Refused("bad-shape", f"numbers has shape {numbers.shape}, expected one dimension")
        numbers = atomic_numbers(numbers)
        energy = row.number(self.energy_key, "energy")
        forces = row.array(self.forces_key, "forces")
        cell = row.own("cell")
        return Structure(
            numbers=numbers,
            positions=_scaled(positions, LENGTH_UNITS[self.length_unit]),
            cell=np.zeros((3, 3)) if cell is None else _scaled(cell, LENGTH_UNITS[self.length_unit]),
            pbc=_periodic(row.own("pbc")),
            energy=None if energy is None else energy * ENERGY_UNITS[self.energy_unit],
            forces=None if forces is None else _scaled(forces, FORCES_UNITS[self._forces_unit]),
            stress=self._stress(row),
            charge=_whole_number(row, self.charge_key, "charge"),
            spin=_whole_number(row, self.spin_key, "spin"),
            fixed=row.fixed(numbers.size),
            group=self._group(row, numbers),
            key=hash_id(f"asedb:{name if self.id_key is None else row.text(self.id_key, 'id')}"),
        )

    def _group(self, row: Row, numbers: NDArray[np.uint8]) -> int:
        if self.group_key is None:
            return _formula_group(numbers.tobytes())
        return hash_id(f"{self.group_prefix}:{row.text(self.group_key, 'group')}")

    @property
    def _forces_unit(self) -> str:
        return self.forces_unit or f"{self.energy_unit}/{self.length_unit}"

    def _stress(self, row: Row) -> NDArray[np.float64] | None:
        """Return the stress (3, 3), eV/angstrom^3, tension positive; None where there is none."""
        values = None if self.stress_key is None else row.array(self.stress_key, "stress")
        if values is None:
            return None
        if values.shape == (6,):
            values = values[_VOIGT]
        if values.size != 9:
            raise Refused("bad-stress", f"shape {values.shape}, expected (6,) or (3, 3)")
        sign = 1.0 if self.stress_sign == "tension" else -1.0
        return _scaled(values.reshape(3, 3), PRESSURE_UNITS[self.stress_unit] * sign)

    def _check_units(self, file: Path, metadata: dict[str, object]) -> None:
        """Compare the units that a database's metadata names with the options.

        Raises:
            DataError: They contradict each other.
        """
        named = metadata.get("_property_unit_dict")
        units = dict(named) if isinstance(named, dict) else {}
        stated = [
            ("length_unit", "positions", metadata.get("_distance_unit"), self.length_unit),
            ("energy_unit", self.energy_key, units.get(_plain(self.energy_key)), self.energy_unit),
            ("forces_unit", self.forces_key, units.get(_plain(self.forces_key)), self._forces_unit),
            ("stress_unit", self.stress_key, units.get(_plain(self.stress_key or "")), self.stress_unit),
        ]
        for option, key, unit, chosen in stated:
            meant = UNIT_SPELLINGS.get(unit.lower(), chosen) if isinstance(unit, str) else chosen
            if meant != chosen:
                raise DataError(
                    f"{file}: its metadata says that {key} is in {unit}, the options say {chosen}; "
                    f"set {option}: {meant}"
                )


def _scaled(values: NDArray[Any], factor: float) -> NDArray[np.float64]:
    """Return values times a factor; what grows too large is infinite, and refused as such later."""
    values = np.asarray(values, dtype=np.float64)
    if factor == 1.0:
        return values
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float64] = values * factor
    return scaled


@lru_cache(maxsize=4096)
def _formula_group(numbers: bytes) -> int:
    return hash_id(f"formula:{hill_formula(np.frombuffer(numbers, dtype=np.uint8))}")


def _plain(key: str) -> str:
    """Return a key without the place where it is looked for."""
    return key.removeprefix("data.").removeprefix("key_value_pairs.")


def _periodic(pbc: NDArray[np.generic] | None) -> NDArray[np.bool_]:
    """Return along which lattice vectors a row is periodic (3,).

    Raises:
        Refused: It is no three yes or no.
    """
    if pbc is None:
        return np.zeros(3, dtype=bool)
    if pbc.dtype.kind not in "biu" or pbc.shape not in ((), (3,)):
        raise Refused("bad-pbc", f"{pbc.dtype} of shape {pbc.shape}, expected 3 booleans")
    return pbc.astype(bool) if pbc.ndim else np.full(3, bool(pbc))


def _whole_number(row: Row, key: str | None, name: str) -> int | None:
    """Return a whole number of the key-value pairs or data.

    ASE's own column ``charge`` is a sum of initial charges, zero where nobody set any: never looked at.

    Raises:
        Refused: It is another one.
    """
    value = None if key is None else row.number(key, name, own=False)
    if value is None:
        return None
    if not np.isfinite(value) or value != np.trunc(value):
        raise Refused(f"bad-{name}", value)
    return int(value)
