"""Any extended XYZ file: crystals, slabs and molecules, with a map of keys and units.

What the file's keys mean is said by options, not guessed: energies are taken as total, in the unit that is
stated. Where a header itself names its units (``energy_unit=eV``), a contradiction is refused.

Source: the extended XYZ specification, github.com/libAtoms/extxyz.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gfm.data.structure import Structure
from gfm.data.units import ENERGY_UNITS, FORCES_UNITS, LENGTH_UNITS, PRESSURE_UNITS, UNIT_SPELLINGS
from gfm.errors import CorruptDataError
from ingest.readers.base import Block, Part, hash_id
from ingest.readers.columns import add_run
from ingest.readers.extxyz_names import ENERGY_KEYS, FORCES_KEYS, NUMBERS_KEYS
from ingest.readers.extxyz_runs import run_columns, wanted_keys
from ingest.readers.frame import Frame, FrameError, parse_cell, parse_floats, parse_frame
from ingest.readers.records import BlockBuilder, Refused, check_structure, hill_formula
from ingest.readers.runs import Run
from ingest.readers.stated import StatedUnits
from ingest.readers.text import find_text, is_packed, open_text, read_frames, seek_frame
from ingest.readers.window import ZIP_ERRORS

__all__ = ["ExtXyz"]

_SUFFIXES = tuple(name + packing for name in (".extxyz", ".xyz") for packing in ("", ".xz", ".gz", ".zip"))


class ExtXyz(StatedUnits):
    """Reads ``*.xyz`` and ``*.extxyz``, plain or packed (.xz, .gz, .zip).

    Attributes:
        energy_key: Header key of the energy; by default the first of the usual names that is there.
        forces_key: Column of the forces; by default the first of the usual names that is there.
        stress_key: Header key of the stress, 9 numbers or 6 in Voigt's order (xx yy zz yz xz xy). Null: none.
        virial_key: Header key of the virial (stress = -virial/volume), taken where there is no stress.
        charge_key: Header key of the total charge, if it is there.
        spin_key: Header key of the multiplicity 2S+1, if it is there.
        group_key: Header key of what a split must not tear apart (a trajectory, a material); by default all
            structures of one formula belong together.
        group_prefix: Name space of the group, so that one material is one group in several sources (``mp``).
        id_key: Header key of a unique id; by default file name and place in the file.
        require_forces: Whether a frame without forces is refused.
    """

    NAME: ClassVar[str] = "extxyz"
    UNITS: ClassVar[dict[str, str]] = {
        "energy": "option energy_unit (default eV), total unless option energy_kind says otherwise",
        "forces": "option forces_unit (default energy_unit/length_unit), minus the gradient",
        "stress": "option stress_unit (default eV/angstrom^3), option stress_sign (default tension positive)",
        "virial": "option energy_unit; stress = -virial/volume",
        "pos, Lattice": "option length_unit (default angstrom); rows of Lattice are lattice vectors",
        "charge": "e",
        "move_mask": "T = free, F = held fixed",
    }
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "stress", "charge", "spin", "fixed")

    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = "stress"
    virial_key: str | None = "virial"
    charge_key: str | None = "charge"
    spin_key: str | None = "spin"
    group_key: str | None = None
    group_prefix: str = "extxyz"
    id_key: str | None = None
    require_forces: bool = True

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut plain files into ranges of bytes; a packed file, or a member of a zip, is one part.

        Raises:
            MissingDataError: There is no file.
            DataError: It is a tar archive.
        """
        parts: list[Part] = []
        for file in find_text(path, _SUFFIXES, "extended XYZ files"):
            size = file.stat().st_size
            if zipfile.is_zipfile(file):
                parts += self._plan_zip(file)
            elif is_packed(file):
                parts.append(Part(self.NAME, str(file), 0, size, size, file.name, {"packed": True}))
            else:
                for start in range(0, max(size, 1), max(part_bytes, 1)):
                    stop = min(start + part_bytes, size)
                    label = f"{file.name} bytes {start}..{stop}"
                    parts.append(
                        Part(self.NAME, str(file), start, stop, stop - start, label, {"packed": False})
                    )
        return parts

    def _plan_zip(self, file: Path) -> list[Part]:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except ZIP_ERRORS as error:
            return [self.unreadable(file, f"not readable as zip: {error}")]
        if not members:
            return [self.unreadable(file, "a zip without any file in it")]
        parts = []
        for member in members:
            extra = {"packed": True, "member": member.filename}
            label = f"{file.name}:{member.filename}"
            parts.append(Part(self.NAME, str(file), 0, member.file_size, member.compress_size, label, extra))
        return parts

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part.

        Raises:
            CorruptDataError: It is a zip, and what it holds cannot be opened; or it is a tar archive.
        """
        path = Path(part.path)
        builder = BlockBuilder()
        member = part.extra.get("member")
        name = "/".join((*path.absolute().parts[-2:], *([member] if member else [])))
        where = f"{path}{':' + member if member else ''}"
        with open_text(path, member) as stream:
            packed = part.extra["packed"]
            start = 0 if packed else seek_frame(stream, part.start)
            try:
                for found in read_frames(stream, wanted_keys(self), start, None if packed else part.stop):
                    if isinstance(found, Run):
                        self._add_run(builder, found, where, name)
                    else:
                        self._add(builder, found, where, name)
                    if builder.full:
                        yield builder.take()
            except CorruptDataError as error:
                raise CorruptDataError(f"{where}: {error}") from None
        if builder:
            yield builder.take()

    def _add(self, builder: BlockBuilder, frame: Frame | FrameError, where: str, name: str) -> None:
        """Give one frame of the file called ``name`` to the builder."""
        source = f"{where}@{frame.offset}"
        try:
            if isinstance(frame, FrameError):
                raise Refused(frame.reason, frame.value)
            builder.add(self._structure(frame, name), source)
        except Refused as refused:
            builder.refuse(source, refused)

    def _add_run(self, builder: BlockBuilder, run: Run, where: str, name: str) -> None:
        """Give plain frames of the file called ``name`` to the builder."""
        found = run_columns(self, run, name)
        if found is None:
            for row in range(len(run)):
                self._add(builder, run.frame(row), where, name)
            return
        sources = [f"{where}@{offset}" for offset in run.offsets]
        add_run(builder, run, *found, sources, lambda row: self._add(builder, run.frame(row), where, name))

    def _structure(self, frame: Frame, name: str) -> Structure:
        """Return the structure of one frame of the file called ``name``.

        Raises:
            Refused: It cannot be a labelled structure.
        """
        info, columns = parse_frame(frame)
        self.check_units(info)
        numbers = next((columns[key] for key in NUMBERS_KEYS if key in columns), None)
        if numbers is None or "pos" not in columns:
            raise Refused("missing-numbers" if numbers is None else "missing-positions", info.get("Properties"))
        cell, pbc = parse_cell(info)
        cell = cell * LENGTH_UNITS[self.length_unit]
        energy = _one_number(info, (self.energy_key,) if self.energy_key else ENERGY_KEYS, "energy")
        forces_keys = (self.forces_key,) if self.forces_key else FORCES_KEYS
        forces = next((columns[key] for key in forces_keys if key in columns), None)
        mask = columns.get("move_mask")
        structure = Structure(
            numbers=numbers,
            positions=_scaled("positions", columns["pos"], LENGTH_UNITS[self.length_unit]),
            cell=cell,
            pbc=pbc,
            energy=None if energy is None else energy * ENERGY_UNITS[self.energy_unit],
            forces=None if forces is None else _scaled("forces", forces, self.forces_factor()),
            stress=self._stress(info, cell),
            charge=_whole_number(info, self.charge_key, "charge"),
            spin=_whole_number(info, self.spin_key, "spin"),
            fixed=~mask if mask is not None and mask.dtype == bool and mask.ndim == 1 else None,
            key=hash_id(
                f"extxyz:{_text(info, self.id_key, 'id')}" if self.id_key else f"extxyz:{name}@{frame.offset}"
            ),
        )
        check_structure(structure, forces=self.require_forces)
        if self.group_key is None:
            structure.group = hash_id(f"formula:{hill_formula(structure.numbers)}")
        else:
            structure.group = hash_id(f"{self.group_prefix}:{_text(info, self.group_key, 'group')}")
        return structure

    def forces_factor(self) -> float:
        """Return the factor from the file's unit of forces to eV/angstrom."""
        return FORCES_UNITS[self.forces_unit or f"{self.energy_unit}/{self.length_unit}"]

    def _stress(self, info: dict[str, str], cell: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the stress (3, 3), eV/angstrom^3, tension positive; None where there is none."""
        for key, what in ((self.stress_key, "stress"), (self.virial_key, "virial")):
            if key is None or key not in info:
                continue
            values = parse_floats(info[key], what)
            if values.size == 6:
                values = values[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
            if values.size != 9:
                raise Refused(f"bad-{what}", f"{values.size} numbers, expected 9 or 6")
            tensor = values.reshape(3, 3).T
            if what == "stress":
                return (
                    tensor * PRESSURE_UNITS[self.stress_unit] * (1.0 if self.stress_sign == "tension" else -1.0)
                )
            volume = abs(float(np.linalg.det(cell)))
            if not volume > 0.0:
                raise Refused("bad-virial", "a virial without a volume")
            return tensor * -ENERGY_UNITS[self.energy_unit] / volume
        return None

    def check_units(self, info: dict[str, str]) -> None:
        """Compare the units that a header names with the options.

        Raises:
            Refused: They contradict each other.
        """
        forces_unit = self.forces_unit or f"{self.energy_unit}/{self.length_unit}"
        stated = {"energy": self.energy_unit, "forces": forces_unit, "stress": self.stress_unit}
        for what, unit in stated.items():
            named = info.get(f"{what}_unit")
            if named is not None and UNIT_SPELLINGS.get(named.lower(), unit) != unit:
                raise Refused("other-unit", f"{what}_unit={named} in the header, {unit} in the options")


def _scaled(name: str, values: NDArray[Any], factor: float) -> NDArray[np.float64]:
    """Return a column times a factor.

    Raises:
        Refused: It is no column of numbers.
    """
    if values.dtype.kind not in "fi":
        raise Refused(f"bad-{name}", f"a column of {values.dtype}")
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float64] = values * factor
    return scaled


def _text(info: dict[str, str], key: str, what: str) -> str:
    """Return a header value that must be there.

    Raises:
        Refused: It is not.
    """
    if key not in info:
        raise Refused(f"missing-{what}", f"no {key} in the header")
    return info[key]


def _one_number(info: dict[str, str], keys: tuple[str, ...], what: str) -> float | None:
    """Return the number of the first key that is there.

    Raises:
        Refused: It is no single number.
    """
    key = next((key for key in keys if key in info), None)
    if key is None:
        return None
    values = parse_floats(info[key], what)
    if values.size != 1:
        raise Refused(f"bad-{what}", f"{key} has {values.size} numbers")
    return float(values[0])


def _whole_number(info: dict[str, str], key: str | None, what: str) -> int | None:
    """Return a header value that is a whole number.

    Raises:
        Refused: It is another one.
    """
    value = None if key is None else _one_number(info, (key,), what)
    if value is None:
        return None
    if value != np.trunc(value) or not np.isfinite(value):
        raise Refused(f"bad-{what}", value)
    return int(value)
