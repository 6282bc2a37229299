"""ANI-1x (and ANI-1ccx): one HDF5 file, one group per formula, big arrays over conformers.

A level of theory that was not computed for a conformer is NaN there, so a conformer counts only where all that
is asked for is finite. Everything is vectorised: no Python object is made per structure.

Source: Smith et al., doi:10.1038/s41597-020-0473-z; file ``ani1x-release.h5``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gfm.data.fields import presence_bit
from gfm.data.ragged import RaggedBatch
from gfm.data.units import HARTREE
from gfm.errors import DataError
from ingest.readers.base import (
    BLOCK_STRUCTURES,
    HDF5_ERRORS,
    Block,
    Part,
    Published,
    Reader,
    find_files,
    hash_id,
    open_hdf5,
)
from ingest.readers.records import BlockBuilder, Refused, atomic_numbers, hill_formula

if TYPE_CHECKING:
    import h5py

__all__ = ["Ani1x"]

_THEORY = {
    "wb97x_dz": "wB97X/6-31G(d)",
    "wb97x_tz": "wB97X/def2-TZVPP",
    "ccsd(t)_cbs": "CCSD(T)*/CBS",
}


class Ani1x(Reader):
    """Reads ``ani1x-release.h5``.

    Attributes:
        level_of_theory: Prefix of the keys that are read: ``wb97x_dz``, ``wb97x_tz``, ``ccsd(t)_cbs``, ...
        require_forces: Whether a conformer without forces is refused; ``ccsd(t)_cbs`` has none.
    """

    NAME: ClassVar[str] = "ani1x"
    UNITS: ClassVar[dict[str, str]] = {
        "coordinates": "angstrom",
        "<level>.energy": "hartree, total",
        "<level>.forces": "hartree/angstrom, minus the gradient",
        "charge": "all molecules are neutral (not in the file)",
        "spin": "all molecules are singlets (not in the file)",
    }
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "charge", "spin")

    level_of_theory: str = "wb97x_dz"
    require_forces: bool = True

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published(
            _THEORY.get(self.level_of_theory, self.level_of_theory), "CC0-1.0", "10.1038/s41597-020-0473-z"
        )

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut each file into stretches of conformers; formulas in the file's order.

        Raises:
            MissingDataError: There is no file.
            DataError: A file holds no formula group, or none with the level of theory that is asked for.
        """
        return [
            part
            for file in find_files(path, (".h5", ".hdf5"), "ANI-1x files")
            for part in self._plan_file(file, part_bytes)
        ]

    def _plan_file(self, file: Path, part_bytes: int) -> list[Part]:
        import h5py

        stretches: list[tuple[str, int, int, int]] = []  # group, first row, stop row, bytes
        energies: set[str] = set()
        try:
            with h5py.File(file, "r") as h5:
                for name, group in h5.items():
                    if not isinstance(group, h5py.Group) or "coordinates" not in group:
                        continue
                    energies |= {key.removesuffix(".energy") for key in group if key.endswith(".energy")}
                    shape = group["coordinates"].shape
                    row_bytes = 24 * int(np.prod(shape[1:2])) + 8
                    step = max(1, part_bytes // row_bytes)
                    num_rows = shape[0] if shape else 0
                    for first in range(0, max(num_rows, 1), step):
                        stop = min(first + step, num_rows)
                        stretches.append((name, first, stop, (stop - first) * row_bytes))
        except HDF5_ERRORS as error:
            return [self.unreadable(file, f"not readable as HDF5 ({error}); expected the ANI-1x release")]
        if not stretches:
            raise DataError(f"{file}: no group holds 'coordinates'; expected one group per formula (ANI-1x)")
        if self.level_of_theory not in energies:
            raise DataError(
                f"{file}: no group holds '{self.level_of_theory}.energy'; levels of theory with energies in "
                f"this file: {', '.join(sorted(energies)) or 'none'} (option level_of_theory)"
            )
        return self._gather(file, stretches, part_bytes)

    def _gather(self, file: Path, stretches: list[tuple[str, int, int, int]], part_bytes: int) -> list[Part]:
        """Join neighbouring stretches up to the size of a part; start and stop count conformers of the file."""
        parts: list[Part] = []
        groups: list[tuple[str, int, int]] = []
        start = rows = size = 0
        for index, (name, first, stop, nbytes) in enumerate(stretches):
            groups.append((name, first, stop))
            rows += stop - first
            size += nbytes
            last = index == len(stretches) - 1
            if last or size + stretches[index + 1][3] > part_bytes:
                label = f"{file.name} conformers {start}..{start + rows}"
                extra = {"groups": [list(group) for group in groups]}
                parts.append(Part(self.NAME, str(file), start, start + rows, size, label, extra))
                groups, start, rows, size = [], start + rows, 0, 0
        return parts

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part.

        Raises:
            CorruptDataError: The file cannot be opened.
        """
        builder = BlockBuilder()
        with open_hdf5(part.path) as h5:
            for name, first, stop in part.extra["groups"]:
                for row in range(first, max(stop, first + 1), BLOCK_STRUCTURES):
                    self._read_rows(h5, part.path, name, row, min(row + BLOCK_STRUCTURES, stop), builder)
                    if builder.full:
                        yield builder.take()
        if builder:
            yield builder.take()

    def _read_rows(
        self, h5: "h5py.File", path: str, name: str, first: int, stop: int, builder: BlockBuilder
    ) -> None:
        """Read conformers ``first`` to ``stop`` of one formula."""
        sources = [f"{path}:/{name}[{row}]" for row in range(first, stop)]
        try:
            numbers, values = self._arrays(h5, name, first, stop)
        except Refused as refused:
            # A formula without any conformer has no record to name, and yet it must not vanish.
            for source in sources or [f"{path}:/{name}"]:
                builder.refuse(source, refused)
            return
        good = np.ones(len(sources), dtype=bool)
        for field, array in values.items():
            by_row = array.reshape(len(sources), -1)
            finite = np.isfinite(by_row).all(axis=1)
            if field == "forces" and not self.require_forces:
                finite |= np.isnan(by_row).all(axis=1)
            for row in np.flatnonzero(good & ~finite).tolist():
                bad = by_row[row][~np.isfinite(by_row[row])]
                kind = "nan" if np.isnan(bad).any() else "infinite"
                builder.reject(sources[row], f"{kind}-{field}", f"{len(bad)} of {by_row.shape[1]} numbers")
            good &= finite
        if good.any():
            batch = _batch(numbers, values, name, first)
            kept = np.flatnonzero(good)
            builder.add_batch(batch if good.all() else batch.take(kept), [sources[row] for row in kept])

    def _arrays(
        self, h5: "h5py.File", name: str, first: int, stop: int
    ) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
        """Return atomic numbers (rows, atoms), and energy, positions and forces by field, converted.

        Raises:
            Refused: All these conformers lack something, or have it in a shape that does not fit.
        """
        energy_key, forces_key = f"{self.level_of_theory}.energy", f"{self.level_of_theory}.forces"
        rows = slice(first, stop)
        try:
            group = h5[name]
            positions = _array(group, "coordinates", rows, "positions")
            numbers = _array(group, "atomic_numbers", slice(None), "numbers")
            energy = _array(group, energy_key, rows, "energy") * HARTREE
            forces = None
            if self.require_forces or forces_key in group:
                forces = _array(group, forces_key, rows, "forces") * HARTREE
        except Refused:
            raise
        except HDF5_ERRORS as error:
            raise Refused("unreadable", error) from error
        num_rows = stop - first
        if positions.ndim != 3 or positions.shape[::2] != (num_rows, 3):
            raise Refused("bad-shape", f"coordinates {positions.shape}, expected ({num_rows}, atoms, 3)")
        num_atoms = positions.shape[1]
        if num_rows == 0 or num_atoms == 0:
            raise Refused("no-atoms", f"{num_rows} conformers of {num_atoms} atoms")
        if numbers.ndim == 2:  # one row per conformer, as some copies of the file have it
            numbers = numbers[rows]
        if numbers.shape not in {(num_atoms,), (num_rows, num_atoms)}:
            raise Refused("bad-shape", f"atomic_numbers {numbers.shape} for {num_atoms} atoms")
        if energy.size != num_rows:
            raise Refused("bad-shape", f"{energy_key} {energy.shape} for {num_rows} conformers")
        with np.errstate(over="ignore"):  # what overflows is infinite then, and refused as such
            values: dict[str, NDArray[Any]] = {"energy": energy.reshape(-1)}
            values["positions"] = positions.astype(np.float32)
            if forces is not None:
                if forces.shape != positions.shape:
                    raise Refused("bad-shape", f"{forces_key} {forces.shape}, coordinates {positions.shape}")
                values["forces"] = forces.astype(np.float32)
        return np.broadcast_to(atomic_numbers(numbers), (num_rows, num_atoms)), values


def _array(group: "h5py.Group", key: str, rows: slice, what: str) -> NDArray[np.float64]:
    """Read rows of one array of a formula as float64.

    Raises:
        Refused: There is no such array, or it does not hold numbers.
    """
    if key not in group:
        raise Refused(f"missing-{what}", key)
    data = group[key]
    if getattr(data, "dtype", np.dtype("O")).kind not in "fiu" or data.ndim == 0:
        raise Refused(f"bad-{what}", f"{key} is not an array of numbers")
    return np.asarray(data[rows], dtype=np.float64)


def _batch(numbers: NDArray[np.uint8], values: dict[str, NDArray[Any]], name: str, first: int) -> RaggedBatch:
    """Return conformers ``first``... of one formula as a batch, without an object per structure."""
    num_rows, num_atoms = numbers.shape
    same = bool((numbers == numbers[0]).all())
    formulas = [hill_formula(row) for row in (numbers[:1] if same else numbers)]
    groups = np.array([hash_id(f"formula:{formula}") for formula in formulas], dtype=np.uint64)
    columns: dict[str, NDArray[Any]] = {
        "numbers": numbers.reshape(-1),
        "positions": values["positions"].reshape(-1, 3),
        "cell": np.zeros((num_rows, 3, 3)),
        "pbc": np.zeros((num_rows, 3), dtype=bool),
        "energy": values["energy"],
        "charge": np.zeros(num_rows, dtype=np.int8),
        "spin": np.ones(num_rows, dtype=np.int8),
        "dataset": np.zeros(num_rows, dtype=np.uint8),
        "group": np.broadcast_to(groups, num_rows).copy(),
        "key": np.array(
            [hash_id(f"ani1x:{name}/{row}") for row in range(first, first + num_rows)], dtype=np.uint64
        ),
    }
    present = np.full(num_rows, sum(map(presence_bit, ("energy", "charge", "spin"))), dtype=np.uint32)
    if "forces" in values:
        has_forces = np.isfinite(values["forces"]).all(axis=(1, 2))
        columns["forces"] = values["forces"].reshape(-1, 3)
        present |= np.where(has_forces, presence_bit("forces"), 0).astype(np.uint32)
    return RaggedBatch(columns, np.arange(num_rows + 1, dtype=np.int64) * num_atoms, present)
