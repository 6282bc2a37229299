"""QM7-X: eight HDF5 files; a group per molecule, in it a group per frame, in it a tiny array per property.

Reading is bound by the number of HDF5 objects that are opened, so arrays are opened by path with h5py's low
level interface (a third of the time of the high level one). The archives (``1000.xz``, ...) are unpacked
beforehand: HDF5 needs random access.

Source: Hoja et al., doi:10.1038/s41597-021-00812-2; files doi:10.5281/zenodo.4288677.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gfm.data.structure import Structure
from gfm.errors import CorruptDataError, DataError, MissingDataError
from ingest.readers.base import HDF5_ERRORS, Block, Part, Published, Reader, find_files, hash_id, open_hdf5
from ingest.readers.records import BlockBuilder, Refused, check_structure

if TYPE_CHECKING:
    import h5py

__all__ = ["Qm7x"]

# Energy and forces of one pair belong together; the energy of one with the forces of the other is an error.
_PAIRS = {"PBE0+MBD": ("ePBE0+MBD", "totFOR"), "PBE0": ("ePBE0", "pbe0FOR")}
_DUPLICATES = "DupMols.dat"

_log = logging.getLogger(__name__)


class Qm7x(Reader):
    """Reads ``1000.hdf5`` ... ``8000.hdf5``.

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

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published(f"{self.level_of_theory}/tight", "CC-BY-4.0", "10.5281/zenodo.4288677")

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut each file into stretches of frames, molecules in natural order.

        Raises:
            MissingDataError: There is no file, or the list of duplicates that was named is not there.
            DataError: A file is still packed, or holds no molecules.
        """
        files = find_files(path, (".hdf5", ".h5", ".xz"), "QM7-X files")
        for folder in sorted({file.parent for file in files}):
            if self.duplicates is not None and not self._duplicates(folder):
                _log.warning("%s: no list of duplicates (%s), so all are kept", folder, self.duplicates)
        return [part for file in files for part in self._plan_file(file, part_bytes)]

    def _plan_file(self, file: Path, part_bytes: int) -> list[Part]:
        import h5py

        _check_unpacked(file)
        counts: list[tuple[str, int]] = []
        try:
            with h5py.File(file, "r") as h5:
                names = sorted(h5, key=lambda name: (len(name), name))
                groups = ((name, h5[name]) for name in names)
                counts += [(name, len(group)) for name, group in groups if isinstance(group, h5py.Group)]
        except HDF5_ERRORS as error:
            return [self.unreadable(file, f"not readable as HDF5 ({error}); expected a QM7-X file")]
        num_frames = sum(count for _, count in counts)
        if not num_frames:
            raise DataError(f"{file}: no frame in any group; expected groups <molecule>/<frame> (QM7-X)")
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
                    label = f"{file.name} frames {start}..{start + frames}"
                    share = size * frames // num_frames
                    extra = {"molecules": molecules}
                    parts.append(Part(self.NAME, str(file), start, start + frames, share, label, extra))
                    molecules, start, frames = [], start + frames, 0
        return parts

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part.

        Raises:
            CorruptDataError: The file cannot be opened.
        """
        duplicates = self._duplicates(Path(part.path).parent)
        builder = BlockBuilder()
        with open_hdf5(part.path) as h5:
            for molecule, first, stop in part.extra["molecules"]:
                try:
                    frames = list(h5[molecule])[first:stop]
                except HDF5_ERRORS as error:
                    raise CorruptDataError(
                        f"{part.path}: molecule {molecule!r} not readable: {error}"
                    ) from error
                for frame in frames:
                    source = f"{part.path}:/{molecule}/{frame}"
                    try:
                        builder.add(self._structure(h5, molecule, frame, duplicates), source)
                    except Refused as refused:
                        builder.refuse(source, refused)
                    if builder.full:
                        yield builder.take()
        if builder:
            yield builder.take()

    def _structure(self, h5: "h5py.File", molecule: str, frame: str, duplicates: frozenset[str]) -> Structure:
        """Read one frame.

        Raises:
            Refused: It is a duplicate, or cannot be a labelled structure.
        """
        if frame.rpartition("-")[0] in duplicates:
            raise Refused("duplicate", _DUPLICATES)
        energy_key, forces_key = _PAIRS[self.level_of_theory]
        place = f"{molecule}/{frame}/"
        numbers = _array(h5, place, "atNUM")
        positions = _array(h5, place, "atXYZ")
        energy = _array(h5, place, energy_key)
        if numbers is None or positions is None:
            raise Refused("missing-numbers" if numbers is None else "missing-positions")
        if energy is not None and energy.size != 1:
            raise Refused("bad-shape", f"{energy_key} {energy.shape}, expected one value")
        structure = Structure(
            numbers=numbers,
            positions=positions,
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
            energy=None if energy is None else float(energy.reshape(-1)[0]),
            forces=_array(h5, place, forces_key),
            charge=0,
            spin=1,
            group=hash_id(f"qm7x:{molecule}"),
            key=hash_id(f"qm7x:{frame}"),
        )
        return check_structure(structure, forces=self.require_forces)

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


def _check_unpacked(file: Path) -> None:
    """Refuse an archive.

    Raises:
        DataError: The file is xz, or a tar; the text says how to unpack it.
    """
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(b"\xfd7zXZ"):
        raise DataError(f"{file}: still packed; HDF5 needs random access. Unpack it first: xz -dk {file.name}")
    if head[257:262] == b"ustar":
        raise DataError(f"{file}: a tar archive. Unpack it first: tar xf {file.name}")


def _array(h5: "h5py.File", place: str, key: str) -> NDArray[Any] | None:
    """Read one array of a frame; None where there is none.

    Raises:
        Refused: It is there and cannot be read, or does not hold numbers.
    """
    from h5py import h5d, h5s

    try:
        try:
            data = h5d.open(h5.id, f"{place}{key}".encode())
        except KeyError:
            return None
        dtype = data.dtype
        if dtype.kind not in "fiu":
            raise Refused("bad-shape", f"{key} holds {dtype}, expected numbers")
        array: NDArray[Any] = np.empty(data.shape, dtype=dtype)
        data.read(h5s.ALL, h5s.ALL, array)
    except Refused:
        raise
    except HDF5_ERRORS as error:
        raise Refused("unreadable", f"{key}: {error}") from error
    return array
