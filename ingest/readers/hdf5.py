"""Any HDF5 file with a group per molecule and arrays over its conformers: names and units by options.

What the arrays mean is said by options, not guessed; two published layouts fill them in. Where an array names
its own units (attribute ``units``), a contradiction is refused.

* ``transition1x`` (checked against copies of its authors' loader): ``data/<formula>/<reaction>`` with
  ``positions`` (Nc, N, 3) angstrom, ``atomic_numbers`` (N,), ``wB97x_6-31G(d).energy`` (Nc,) eV and
  ``wB97x_6-31G(d).forces`` (Nc, N, 3) eV/angstrom. The groups ``reactant``, ``transition_state`` and
  ``product`` in a reaction hold single configurations and are refused as ``left-out``: they are assumed to be
  among the reaction's own. ``train``, ``val`` and ``test`` show what is in ``data`` once more: not looked into.
* ``spice`` (checked against the program that makes the release): ``<name>`` with ``conformations`` (Nc, N, 3)
  bohr, ``atomic_numbers`` (N,), ``dft_total_energy`` (Nc,) hartree and ``dft_total_gradient`` (Nc, N, 3)
  hartree/bohr, each with its ``units``. The release tells no total charge; ``total_charge`` (an assumed name)
  is read where a copy has it. Energies of the first release are float32, which resolves some 1e-3 eV.

Sources: Schreiner et al., doi:10.1038/s41597-022-01870-w, and gitlab.com/matschreiner/Transition1x; Eastman et
al., doi:10.1038/s41597-022-01882-6, and github.com/openmm/spice-dataset (downloader/downloader.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from gfm.data.units import ENERGY_UNITS, FORCES_UNITS, LENGTH_UNITS, PRESSURE_UNITS, UNIT_SPELLINGS
from ingest.readers.base import HDF5_ERRORS, Part, Published, find_files, hash_id
from ingest.readers.conformers import Gatherer, Scale
from ingest.readers.hdf5_arrays import Hdf5Arrays
from ingest.readers.hdf5_groups import GroupReader
from ingest.readers.hdf5_rows import GroupKeys
from ingest.readers.records import BlockBuilder, Refused

if TYPE_CHECKING:
    from h5py.h5g import GroupID

__all__ = ["Hdf5"]

_LAYOUTS: dict[str, dict[str, Any]] = {
    "transition1x": {
        "numbers_key": "atomic_numbers",
        "positions_key": "positions",
        "energy_key": "wB97x_6-31G(d).energy",
        "forces_key": "wB97x_6-31G(d).forces",
        "root": ("data",),
        "leave_out": ("reactant", "transition_state", "product"),
    },
    "spice": {
        "numbers_key": "atomic_numbers",
        "positions_key": "conformations",
        "energy_key": "dft_total_energy",
        "forces_key": "dft_total_gradient",
        "charge_key": "total_charge",
        "energy_unit": "hartree",
        "length_unit": "bohr",
        "forces_sign": "gradient",
    },
    "custom": {},
}
_PUBLISHED = {
    "transition1x": Published("wB97X/6-31G(d)", "CC-BY-4.0", "10.1038/s41597-022-01870-w"),
    "spice": Published("wB97M-D3(BJ)/def2-TZVPPD", "CC0-1.0", "10.1038/s41597-022-01882-6"),
    "custom": Published("unknown", "unknown"),
}

_UNITS = (ENERGY_UNITS, FORCES_UNITS, LENGTH_UNITS, PRESSURE_UNITS)
_SPELLINGS = {unit.lower(): unit for table in _UNITS for unit in table} | UNIT_SPELLINGS


class Hdf5(GroupReader):
    """Reads ``*.hdf5`` and ``*.h5`` with arrays over conformers in groups.

    Attributes:
        layout: Fills in the other options for a published layout: ``transition1x`` or ``spice``; options that
            are given win.
        numbers_key: Atomic numbers of a group, (N,) or (Nc, N).
        positions_key: Positions (Nc, N, 3), or (N, 3) of a single structure; a group that has them is read.
        energy_key: Energies (Nc,).
        forces_key: Forces or gradients, in the shape of the positions; null for none.
        cell_key: Lattice vectors as rows, (3, 3) or (Nc, 3, 3), if they are there.
        stress_key: Stress (Nc, 3, 3), or (Nc, 6) in Voigt's order (xx yy zz yz xz xy), if it is there.
        charge_key: Total charge, one number or (Nc,), if it is there.
        spin_key: Multiplicity 2S+1, one number or (Nc,), if it is there.
        energy_unit: Unit of the energies.
        length_unit: Unit of positions and lattice vectors.
        forces_unit: Unit of the forces, as in ``hartree/bohr``; by default energy_unit per length_unit.
        forces_sign: Whether the file has forces, or gradients (forces are minus those).
        stress_unit: Unit of the stress.
        stress_sign: Whether tension or compression is positive in the file.
        pbc: Directions in which a structure with a cell is periodic; one without is not.
        ignore_units: Whether what arrays themselves name as their units is not compared with the options.
        root: Groups below which structures are looked for; by default the whole file.
        leave_out: Names of groups whose conformers are refused as ``left-out``.
        group_by: What a split must not tear apart: all structures of one ``formula``, those of one group
            directly below the root (``top``), or those of the group they lie in (``leaf``).
        theory: Level of theory, for the manifest.
        energy_kind: What the energy is, for the manifest.
    """

    NAME: ClassVar[str] = "hdf5"
    UNITS: ClassVar[dict[str, str]] = {
        "energy": "option energy_unit (default eV; spice hartree), option energy_kind (default total)",
        "forces": "option forces_unit (default energy_unit/length_unit), option forces_sign (spice: gradient)",
        "positions, cell": "option length_unit (default angstrom; spice bohr); rows are lattice vectors",
        "stress": "option stress_unit (default eV/angstrom^3), option stress_sign (default tension positive)",
        "charge": "e",
        "spin": "2S+1",
    }
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "stress", "charge", "spin")

    layout: Literal["custom", "transition1x", "spice"] = "custom"
    numbers_key: str = "atomic_numbers"
    positions_key: str = "positions"
    energy_key: str = "energy"
    forces_key: str | None = "forces"
    cell_key: str | None = None
    stress_key: str | None = None
    charge_key: str | None = None
    spin_key: str | None = None
    energy_unit: Literal["eV", "meV", "hartree", "kcal/mol", "kJ/mol"] = "eV"
    length_unit: Literal["angstrom", "bohr"] = "angstrom"
    forces_unit: str | None = None
    forces_sign: Literal["forces", "gradient"] = "forces"
    stress_unit: Literal["eV/angstrom^3", "GPa", "kbar", "hartree/bohr^3"] = "eV/angstrom^3"
    stress_sign: Literal["tension", "compression"] = "tension"
    pbc: tuple[bool, bool, bool] = (True, True, True)
    ignore_units: bool = False
    root: tuple[str, ...] = ("",)
    leave_out: tuple[str, ...] = ()
    group_by: Literal["formula", "top", "leaf"] = "formula"
    theory: str | None = None
    energy_kind: str = "total"

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in(cls, options: Any) -> Any:
        """Put the options of a published layout under those that are given."""
        if not isinstance(options, dict):
            return options
        single = {
            name: (options[name],) for name in ("root", "leave_out") if isinstance(options.get(name), str)
        }
        return _LAYOUTS.get(str(options.get("layout")), {}) | options | single

    @pydantic.field_validator("forces_unit")
    @classmethod
    def _known_unit(cls, unit: str | None) -> str | None:
        if unit is None or unit in FORCES_UNITS:
            return unit
        raise ValueError(f"not a unit of forces; known are {', '.join(FORCES_UNITS)}")

    @pydantic.model_validator(mode="after")
    def _forces_named(self) -> Self:
        if self.require_forces and self.forces_key is None:
            raise ValueError("forces_key: null needs require_forces: false")
        return self

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        known = _PUBLISHED[self.layout]
        return Published(self.theory or known.theory, known.licence, known.doi, self.energy_kind)

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut each file into stretches of conformers; groups in the file's order.

        Raises:
            MissingDataError: There is no file.
            DataError: A file holds no group with positions.
        """
        files = find_files(path, (".h5", ".hdf5", ".hdf", ".he5"), "HDF5 files")
        return [part for file in files for part in self.plan_file(file, part_bytes, self._expected())]

    def _expected(self) -> str:
        if self.layout != "custom":
            return f"the layout {self.layout}"
        where = ", ".join(f"/{start.strip('/')}" for start in self.root)
        return f"groups below {where} with arrays over conformers (options positions_key, root, layout)"

    def keys(self) -> GroupKeys:
        """Return which arrays of a group are what."""
        return GroupKeys(
            self.numbers_key, self.positions_key, self.energy_key, self.forces_key,
            cell=self.cell_key, stress=self.stress_key, charge=self.charge_key, spin=self.spin_key,
        )  # fmt: skip

    def scale(self) -> Scale:
        """Return the units that the options state."""
        return Scale(
            length=LENGTH_UNITS[self.length_unit],
            energy=ENERGY_UNITS[self.energy_unit],
            forces=FORCES_UNITS[self._forces_unit()] * (1.0 if self.forces_sign == "forces" else -1.0),
            stress=PRESSURE_UNITS[self.stress_unit] * (1.0 if self.stress_sign == "tension" else -1.0),
        )

    def _forces_unit(self) -> str:
        return self.forces_unit or f"{self.energy_unit}/{self.length_unit}"

    def gatherer(self, builder: BlockBuilder) -> Gatherer:
        """Return what gathers the conformers."""
        return Gatherer(builder, self.scale(), self.require_forces, self.pbc)

    def starts(self) -> tuple[str, ...]:
        """Return the groups below which structures are looked for."""
        return tuple(start.strip("/") for start in self.root)

    def nested(self) -> bool:
        """Say whether a group that holds structures may hold groups that do, too: not in SPICE."""
        return self.layout != "spice"

    def name_space(self, file: Path) -> str:
        """Return what the id of a conformer begins with; published names do not depend on the file's."""
        if self.layout != "custom":
            return f"{self.layout}:"
        return f"hdf5:{'/'.join(file.absolute().parts[-2:])}:"

    def group_hash(self, file: Path, path: str) -> int | None:
        """Return the hash of what a split must not tear apart; None for the formula."""
        if self.group_by == "formula":
            return None
        name = path
        if self.group_by == "top":
            start = max((start for start in self.starts() if path.startswith(start)), key=len, default="")
            name = path[len(start) :].strip("/").partition("/")[0]
        return hash_id(f"{self.name_space(file)}{name}")

    def check_group(self, arrays: Hdf5Arrays, group: "GroupID", path: str) -> None:
        """Refuse a group that is left out, or whose arrays name other units than the options.

        Raises:
            Refused: It is such a group.
        """
        name = path.rpartition("/")[2]
        if name in self.leave_out:
            raise Refused("left-out", f"option leave_out names {name}")
        if self.ignore_units:
            return
        stated = {
            self.positions_key: self.length_unit,
            self.energy_key: self.energy_unit,
            self.forces_key: self._forces_unit(),
            self.cell_key: self.length_unit,
            self.stress_key: self.stress_unit,
        }
        for key, unit in stated.items():
            named = None if key is None else _units_of(arrays, group, key)
            if named is not None and _SPELLINGS.get(named.lower()) != unit:
                text = f"{key} is in {named} by its own account, in {unit} by the options"
                raise Refused("other-unit", f"{text}; if these are the same: option ignore_units")


def _units_of(arrays: Hdf5Arrays, group: "GroupID", key: str) -> str | None:
    """Return the text of an array's attribute ``units`` (or ``unit``); None where there is none.

    Raises:
        Refused: It cannot be read.
    """
    from h5py import h5a

    try:
        if not group.links.exists(key.encode()):
            return None
        found = arrays.open(group, key)
        name = next((name for name in (b"units", b"unit") if h5a.exists(found, name)), None)
        if name is None:
            return None
        attribute = h5a.open(found, name)
        text = np.empty(attribute.shape, dtype=attribute.dtype)
        attribute.read(text)
        value = text.item() if text.size == 1 else None
    except Refused:
        raise
    except HDF5_ERRORS as error:
        raise Refused("unreadable", f"{key}: {error}") from error
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    return value.strip() if isinstance(value, str) else None
