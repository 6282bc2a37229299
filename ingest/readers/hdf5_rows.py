"""Some conformers of one HDF5 group: which arrays it holds them in, what shapes those have, and their rows."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.readers.conformers import Conformers
from ingest.readers.hdf5_arrays import Hdf5Arrays, Stored
from ingest.readers.records import Refused

if TYPE_CHECKING:
    from h5py.h5g import GroupID

__all__ = ["GroupKeys", "read_group"]

_VOIGT = [0, 5, 4, 5, 1, 3, 4, 3, 2]  # xx yy zz yz xz xy -> rows of a matrix


@dataclass(frozen=True)
class GroupKeys:
    """Names of the arrays in a group of Nc conformers with N atoms; None for what is not read.

    Attributes:
        numbers: Atomic numbers (N,) or (Nc, N).
        positions: Positions (Nc, N, 3), or (N, 3) of the only conformer.
        energy: Energies (Nc,) or (Nc, 1).
        forces: Forces, in the shape of the positions.
        cell: Lattice vectors as rows (3, 3) or (Nc, 3, 3).
        stress: Stress (Nc, 3, 3), or (Nc, 6) in Voigt's order.
        charge: Total charge, one number or (Nc,).
        spin: Multiplicity, one number or (Nc,).
    """

    numbers: str
    positions: str
    energy: str
    forces: str | None = None
    cell: str | None = None
    stress: str | None = None
    charge: str | None = None
    spin: str | None = None


def read_group(
    arrays: Hdf5Arrays, group: "GroupID", keys: GroupKeys, first: int, stop: int, require_forces: bool
) -> Conformers:
    """Read conformers ``first`` to ``stop`` of a group, without names for them.

    Raises:
        Refused: All of them lack something, or have it in a shape that does not fit.
    """
    positions = _numbers(arrays, group, keys.positions, "positions")
    shape = (1, *positions.shape) if len(positions.shape) == 2 else positions.shape
    if len(shape) != 3 or shape[2] != 3 or stop > shape[0]:
        raise Refused("bad-shape", f"{keys.positions} {positions.shape}, expected (conformers, atoms, 3)")
    num_rows, num_atoms = shape[:2]
    if first == stop or num_atoms == 0:
        raise Refused("no-atoms", f"{num_rows} conformers of {num_atoms} atoms")
    rows = _Rows(arrays, group, num_rows, first, stop)
    numbers = _numbers(arrays, group, keys.numbers, "numbers")
    if numbers.shape not in {(num_atoms,), (num_rows, num_atoms)}:
        raise Refused("bad-shape", f"{keys.numbers} {numbers.shape} for {num_atoms} atoms")
    energy = _numbers(arrays, group, keys.energy, "energy")
    if math.prod(energy.shape) != num_rows or (num_rows > 1 and energy.shape[0] != num_rows):
        raise Refused("bad-shape", f"{keys.energy} {energy.shape} for {num_rows} conformers")
    forces = None
    if keys.forces is not None and (require_forces or arrays.find(group, keys.forces) is not None):
        forces = _numbers(arrays, group, keys.forces, "forces")
        if forces.shape != positions.shape:
            raise Refused("bad-shape", f"{keys.forces} {forces.shape}, {keys.positions} {positions.shape}")
    elif require_forces:
        raise Refused("missing-forces")
    by_row = len(numbers.shape) == 2
    return Conformers(
        numbers=arrays.read(numbers, first, stop) if by_row else arrays.read(numbers),
        positions=rows.read(positions).reshape(-1, num_atoms, 3),
        energy=rows.read(energy).reshape(-1),
        sources=[],
        keys=[],
        forces=None if forces is None else rows.read(forces).reshape(-1, num_atoms, 3),
        cell=rows.optional(keys.cell, "cell", (3, 3)),
        stress=rows.optional(keys.stress, "stress", (3, 3)),
        charge=rows.optional(keys.charge, "charge", ()),
        spin=rows.optional(keys.spin, "spin", ()),
    )


def _numbers(arrays: Hdf5Arrays, group: "GroupID", key: str, what: str) -> Stored:
    """Return an array of a group.

    Raises:
        Refused: There is none, or it does not hold numbers.
    """
    stored = arrays.find(group, key)
    if stored is None:
        raise Refused(f"missing-{what}", key)
    if stored.dtype.kind not in "fiu":
        raise Refused(f"bad-{what}", f"{key} holds {stored.dtype}, expected numbers")
    return stored


class _Rows(NamedTuple):
    """Some of the conformers of a group of ``num_rows``."""

    arrays: Hdf5Arrays
    group: "GroupID"
    num_rows: int
    first: int
    stop: int

    def read(self, stored: Stored) -> NDArray[Any]:
        """Read what one array holds of them; the only conformer of a group may lack the axis."""
        if self.first == 0 and self.stop == self.num_rows:
            return self.arrays.read(stored)
        return self.arrays.read(stored, self.first, self.stop)

    def optional(self, key: str | None, what: str, entry: tuple[int, ...]) -> NDArray[Any] | None:
        """Read an array that need not be there: one entry for all conformers of the group, or one for each.

        Raises:
            Refused: It is there in another shape.
        """
        if key is None or self.arrays.find(self.group, key) is None:
            return None
        stored = _numbers(self.arrays, self.group, key, what)
        shape, count = stored.shape, self.stop - self.first
        if what == "stress" and shape in {(self.num_rows, 6), (6,)}:
            values = self.arrays.read(stored) if shape == (6,) else self.read(stored)
            return np.broadcast_to(values.reshape(-1, 6)[:, _VOIGT].reshape(-1, 3, 3), (count, 3, 3))
        if shape == entry or (not entry and shape == (1,)):
            return np.broadcast_to(self.arrays.read(stored).reshape(entry), (count, *entry))
        if shape == (self.num_rows, *entry) or (not entry and shape == (self.num_rows, 1)):
            return self.read(stored).reshape(count, *entry)
        raise Refused("bad-shape", f"{key} {shape} for {self.num_rows} conformers")
