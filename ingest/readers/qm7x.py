"""QM7-X: eight HDF5 files; a group per molecule, in it a group per frame, in it a tiny array per property.

Reading is bound by the number of HDF5 objects that are opened, so none is: `Hdf5Arrays` reads the arrays by
their place in the file. The archives (``1000.xz``, ...) are unpacked beforehand, since HDF5 needs random
access; what is read of them is called by the archive's name.

Source: Hoja et al., doi:10.1038/s41597-021-00812-2; files doi:10.5281/zenodo.4288677.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pydantic
from numpy.typing import NDArray

from gfm.errors import ConfigError, CorruptDataError, DataError, MissingDataError
from ingest.readers.base import HDF5_ERRORS, Block, Part, Published, Reader, find_files, hash_id, open_hdf5
from ingest.readers.conformers import Conformers, Gatherer
from ingest.readers.hdf5_arrays import HARD, Hdf5Arrays
from ingest.readers.records import BlockBuilder, Refused
from ingest.readers.unpacking import is_packed, is_tar, unpack_hdf5

if TYPE_CHECKING:
    from h5py import h5g

__all__ = ["Qm7x"]

# Energy and forces of one pair belong together; the energy of one with the forces of the other is an error.
_PAIRS = {"PBE0+MBD": ("ePBE0+MBD", "totFOR"), "PBE0": ("ePBE0", "pbe0FOR")}
_DUPLICATES = "DupMols.dat"
# The last as ``xz -d 1000.xz`` leaves it.
_SUFFIXES = (".hdf5", ".h5", ".xz", ".tar", *(f"{thousand}000" for thousand in range(1, 9)))
_NEUTRAL, _SINGLET = np.zeros(1, dtype=np.int8), np.ones(1, dtype=np.int8)

_log = logging.getLogger(__name__)


class Qm7x(Reader):
    """Reads ``1000.hdf5`` ... ``8000.hdf5``, or ``1000.xz`` ... ``8000.xz`` once they are unpacked.

    Attributes:
        level_of_theory: Which pair of energy and forces is read.
        duplicates: The list of duplicate molecules, whose frames are refused as ``duplicate``; by default
            ``DupMols.dat`` beside the file, if it is there. Null keeps the duplicates.
        require_forces: Whether a frame without forces is refused.
    """

    NAME: ClassVar[str] = "qm7x"
    UNITS: ClassVar[dict[str, str]] = {
        "atXYZ": "angstrom",
        "ePBE0+MBD": "eV, total (with many-body dispersion)",
        "totFOR": "eV/angstrom, minus the gradient of ePBE0+MBD",
        "ePBE0": "eV, total (without dispersion)",
        "pbe0FOR": "eV/angstrom, minus the gradient of ePBE0",
        "charge": "all molecules are neutral (not in the file)",
        "spin": "all molecules are singlets (not in the file)",
    }
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "charge", "spin")

    level_of_theory: Literal["PBE0+MBD", "PBE0"] = "PBE0+MBD"
    duplicates: str | None = _DUPLICATES
    require_forces: bool = True
    _scratch: Path | None = pydantic.PrivateAttr(default=None)

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published(f"{self.level_of_theory}/tight", "CC-BY-4.0", "10.5281/zenodo.4288677")

    def packed(self, path: str) -> list[Path]:
        """Return the archives at a path, those left out beside which the unpacked file lies."""
        return [file for file in self._files(path) if is_packed(file)]

    def unpacking_to(self, scratch: Path) -> Self:
        """Return the reader that unpacks into a folder and finds unpacked files there."""
        reader = self.model_copy()
        reader._scratch = scratch
        return reader

    def unpack(self, file: Path) -> None:
        """Unpack one archive into the folder, whole or not at all; nothing to do where it is there already.

        Raises:
            ConfigError: There is no folder: the reader is not one that `unpacking_to` returned.
            CorruptDataError: It is damaged or cut short.
            DataError: There is no HDF5 file in it, or more than one.
            ResourceError: The disk is full.
        """
        target = self._unpacked(file)
        if target is None:
            raise ConfigError(f"{file}: no folder to unpack it into (Reader.unpacking_to)")
        if not target.exists():
            unpack_hdf5(file, target)

    def _unpacked(self, file: Path) -> Path | None:
        """Return where an archive's unpacked file lies: one of another place or size is another one."""
        if self._scratch is None:
            return None
        place = hash_id(f"{file.absolute()} {file.stat().st_size}")
        return self._scratch / f"{file.name.partition('.')[0]}-{place:016x}.hdf5"

    def _files(self, path: str) -> list[Path]:
        """Return the files at a path: of an archive and its unpacked file in one folder, the latter."""
        files = find_files(path, _SUFFIXES, "QM7-X files")
        names = {file: file.with_name(file.name.partition(".")[0]) for file in files}
        packed = {file for file in files if is_packed(file)}
        plain = {names[file] for file in files if file not in packed}
        return [file for file in files if file not in packed or names[file] not in plain]

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut each file into stretches of frames, molecules in natural order.

        Raises:
            MissingDataError: There is no file, or the list of duplicates that was named is not there.
            DataError: A file is not unpacked yet, or holds no molecules.
        """
        files = self._files(path)
        for folder in sorted({file.parent for file in files}):
            if self.duplicates is not None and not self._duplicates(folder):
                _log.warning("%s: no list of duplicates (%s), so all are kept", folder, self.duplicates)
        return [part for file in files for part in self._plan_file(file, part_bytes)]

    def _plan_file(self, published: Path, part_bytes: int) -> list[Part]:
        import h5py

        file = published
        if is_packed(published):
            unpacked = self._unpacked(published)
            if unpacked is None or not unpacked.exists():
                raise DataError(
                    f"{published}: still packed; HDF5 needs random access. `gfm ingest run` unpacks it first; "
                    f"by hand: {'tar -xf' if is_tar(published) else 'xz -dk'} {published.name}"
                )
            file = unpacked
        counts: list[tuple[str, int]] = []
        refused: list[list[str]] = []
        try:
            with h5py.File(file, "r") as h5:
                arrays = Hdf5Arrays(h5)
                for child in sorted(arrays.children(h5.id), key=lambda child: (len(child.name), child.name)):
                    if child.link != HARD:
                        refused.append([child.name, "link", "a molecule that lies elsewhere"])
                    elif not arrays.is_array(h5.id, child):
                        counts.append((child.name, arrays.group(child.name).get_num_objs()))
        except HDF5_ERRORS as error:
            return [self.unreadable(file, f"not readable as HDF5 ({error}); expected a QM7-X file")]
        num_frames = sum(count for _, count in counts)
        if not num_frames:
            raise DataError(f"{published}: no frame in any group; expected groups <molecule>/<frame> (QM7-X)")
        size = file.stat().st_size
        step = max(1, part_bytes * num_frames // size)
        parts: list[Part] = []
        molecules: list[list[Any]] = []
        start = frames = 0
        for name, count in counts:
            first = 0
            while first < count:
                stop = min(count, first + step - frames)
                molecules.append([name, first, stop])
                frames, first = frames + stop - first, stop
                if frames == step or start + frames == num_frames:
                    label = f"{published.name} frames {start}..{start + frames}"
                    share = size * frames // num_frames
                    extra = {"molecules": molecules, "published": str(published)}
                    if refused:
                        extra["refused"], refused = refused, []
                    parts.append(Part(self.NAME, str(file), start, start + frames, share, label, extra))
                    molecules, start, frames = [], start + frames, 0
        return parts

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part.

        Raises:
            CorruptDataError: The file cannot be opened.
        """
        published = part.extra.get("published", part.path)
        duplicates = self._duplicates(Path(published).parent)
        builder = BlockBuilder()
        gatherer = Gatherer(builder, require_forces=self.require_forces)
        for name, reason, value in part.extra.get("refused", ()):
            builder.reject(f"{published}:/{name}", reason, value)
        with open_hdf5(part.path) as h5:
            arrays = Hdf5Arrays(h5)
            for molecule, first, stop in part.extra["molecules"]:
                try:
                    group = arrays.group(molecule)
                    frames = arrays.children(group)[first:stop]
                except Refused as error:
                    raise CorruptDataError(
                        f"{part.path}: molecule {molecule!r} not readable: {error}"
                    ) from error
                parent = hash_id(f"qm7x:{molecule}")
                for child in frames:
                    frame = child.name
                    source = f"{published}:/{molecule}/{frame}"
                    try:
                        if child.link != HARD:
                            raise Refused("link", "a frame that lies elsewhere")
                        if duplicates and frame.rpartition("-")[0] in duplicates:
                            raise Refused("duplicate", _DUPLICATES)
                        gatherer.add(self._frame(arrays, group, frame, source, parent))
                    except Refused as refused:
                        builder.refuse(source, refused)
                    if builder.full:
                        yield builder.take()
        gatherer.settle()
        if builder:
            yield builder.take()

    def _frame(
        self, arrays: Hdf5Arrays, group: "h5g.GroupID", frame: str, source: str, parent: int
    ) -> Conformers:
        """Read one frame of a molecule.

        Raises:
            Refused: It lacks something, or has it in a shape that does not fit.
        """
        energy_key, forces_key = _PAIRS[self.level_of_theory]
        numbers = _array(arrays, group, frame, "atNUM")
        positions = _array(arrays, group, frame, "atXYZ")
        energy = _array(arrays, group, frame, energy_key)
        forces = _array(arrays, group, frame, forces_key)
        if numbers is None or positions is None or energy is None or (self.require_forces and forces is None):
            values = {"numbers": numbers, "positions": positions, "energy": energy, "forces": forces}
            raise Refused(f"missing-{next(name for name, value in values.items() if value is None)}")
        if numbers.ndim != 1 or numbers.size == 0:
            raise Refused("bad-shape" if numbers.size else "no-atoms", f"atNUM {numbers.shape}")
        shape = (len(numbers), 3)
        if positions.shape != shape or energy.size != 1 or (forces is not None and forces.shape != shape):
            found = f"atXYZ {positions.shape}, {energy_key} {energy.shape}"
            found += "" if forces is None else f", {forces_key} {forces.shape}"
            raise Refused("bad-shape", f"{found}, expected {shape}, one value, {shape}")
        return Conformers(
            numbers=numbers,
            positions=positions[None],
            energy=energy,
            forces=None if forces is None else forces[None],
            charge=_NEUTRAL,
            spin=_SINGLET,
            sources=[source],
            keys=[hash_id(f"qm7x:{frame}")],
            group=parent,
        )

    def _duplicates(self, folder: Path) -> frozenset[str]:
        """Return the molecules (frame ids without their last word) that are duplicates of others.

        Raises:
            MissingDataError: The list was named and is not there.
        """
        if self.duplicates is None:
            return frozenset()
        file = folder / self.duplicates
        if not file.is_file():
            if self.duplicates != _DUPLICATES:
                raise MissingDataError(f"{file}: there is no such list of duplicates (option duplicates)")
            return frozenset()
        return frozenset(name.rpartition("-")[0] for name in file.read_text(errors="replace").split())


def _array(arrays: Hdf5Arrays, group: "h5g.GroupID", frame: str, key: str) -> NDArray[Any] | None:
    """Read one array of a frame; None where there is none.

    Raises:
        Refused: It is there and cannot be read, or does not hold numbers.
    """
    stored = arrays.find(group, f"{frame}/{key}")
    if stored is None:
        return None
    if stored.dtype.kind not in "fiu":
        raise Refused("bad-shape", f"{key} holds {stored.dtype}, expected numbers")
    return arrays.read(stored)
