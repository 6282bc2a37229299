"""MPtrj: one JSON object of 12 GB, ``{material id: {frame id: {structure, energies, force, stress, ...}}}``.

A part is a range of bytes and holds the materials whose id begins in it. Compiled code parses one after
the other; what is not plain is left to orjson, and to Python.

Source: Deng et al., doi:10.1038/s42256-023-00716-3; file doi:10.6084/m9.figshare.23713842.
"""

import gc
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from gfm.data.structure import Structure
from gfm.data.units import KBAR
from gfm.errors import DataError
from ingest.readers.base import Block, Part, Published, Reader, find_files, hash_id
from ingest.readers.mptrj_scan import MaterialScanner
from ingest.readers.mptrj_text import ID_BYTES, MATERIAL, Material, frames_of, materials
from ingest.readers.records import ATOMIC_NUMBERS, PERIODIC, BlockBuilder, Refused
from ingest.readers.text import STREAM_ERRORS, is_packed, open_text

__all__ = ["MPtrj"]

_SPECIES = itemgetter("species")


class MPtrj(Reader):
    """Reads ``MPtrj_2022.9_full.json``, plain or packed (.gz, .xz, .zip: one part then).

    Attributes:
        label: Which energy is read. The corrected one makes PBE and PBE+U calculations comparable.
        require_forces: Whether a frame without forces is refused.
    """

    NAME: ClassVar[str] = "mptrj"
    UNITS: ClassVar[dict[str, str]] = {
        "corrected_total_energy": "eV, total, with the corrections of the Materials Project",
        "uncorrected_total_energy": "eV, total, as computed by VASP",
        "force": "eV/angstrom, minus the gradient of the uncorrected energy (corrections are constant)",
        "stress": "kilobar, compression positive (VASP): -0.1 GPa each, tension positive",
        "structure.lattice.matrix": "angstrom, rows are lattice vectors",
        "structure.sites[].xyz": "angstrom, Cartesian",
    }
    FIELDS: ClassVar[tuple[str, ...]] = ("energy", "forces", "stress")

    label: Literal["corrected_total_energy", "uncorrected_total_energy"] = "corrected_total_energy"
    require_forces: bool = True

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published(
            "PBE and PBE+U (VASP, Materials Project)",
            "CC-BY-4.0",
            "10.6084/m9.figshare.23713842",
            f"total, {self.label.removesuffix('_total_energy')}",
        )

    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut each plain file into ranges of bytes; a packed one is one part.

        Raises:
            MissingDataError: There is no file.
            DataError: A file does not begin as MPtrj does.
        """
        parts: list[Part] = []
        for file in find_files(path, (".json", ".json.gz", ".json.xz", ".json.zip"), "MPtrj files"):
            size = file.stat().st_size
            packed = is_packed(file)
            try:
                with open_text(file) as stream:
                    head = stream.read(ID_BYTES + 64).lstrip()
            except STREAM_ERRORS as error:
                parts.append(self.unreadable(file, f"{type(error).__name__}: {error}"))
                continue
            first = MATERIAL.match(head[1:].lstrip())
            if not head.startswith(b"{") or (first is None and head[1:].strip() != b"}"):
                raise DataError(
                    f'{file}: begins with {head[:16]!r}; expected {{"mp-...": {{ (MPtrj: material, then frames)'
                )
            step = size if packed else max(part_bytes, ID_BYTES)
            for start in range(0, size, step):
                stop = min(start + step, size)
                label = f"{file.name} bytes {start}..{stop}"
                parts.append(Part(self.NAME, str(file), start, stop, stop - start, label, {"packed": packed}))
        return parts

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part."""
        builder = BlockBuilder()
        scanner = MaterialScanner(self.label)
        with open_text(Path(part.path)) as stream:
            if not part.extra["packed"]:
                stream.seek(part.start)
            stop = None if part.extra["packed"] else part.stop
            for material in materials(stream, part.start, stop):
                frames = self._frames(material, scanner)
                while self._fill(builder, part.path, material.id, frames):
                    yield builder.take()
        if builder:
            yield builder.take()

    def _frames(
        self, material: Material, scanner: MaterialScanner
    ) -> Iterator[tuple[str, Structure | Refused]]:
        """Return each frame's id and structure, or why it has none."""
        plain = None if material.broken else scanner.structures(material.id, material.frames)
        return self._parsed(material) if plain is None else plain

    def _parsed(self, material: Material) -> Iterator[tuple[str, Structure | Refused]]:
        """Yield each frame's id and structure, or why it has none, in Python."""
        for frame_id, frame in frames_of(material):
            try:
                if isinstance(frame, Refused):
                    raise frame
                yield frame_id, self._structure(material.id, frame_id, frame)
            except Refused as refused:
                yield frame_id, refused

    def _fill(
        self,
        builder: BlockBuilder,
        path: str,
        material: str,
        frames: Iterator[tuple[str, Structure | Refused]],
    ) -> bool:
        """Gather frames of a material until there are no more, or (True) until a block is full."""
        # The parser makes thousands of lists, none of them garbage: looking for cycles in them is lost time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            for frame_id, frame in frames:
                source = f"{path}:/{material}/{frame_id}"
                if isinstance(frame, Refused):
                    builder.refuse(source, frame)
                else:
                    builder.offer(frame, source, forces=self.require_forces)
                if builder.full:
                    return True
        finally:
            if collecting:
                gc.enable()
        return False

    def _structure(self, material: str, frame_id: str, frame: Any) -> Structure:
        """Return the structure of one frame; its numbers are still to be checked.

        Raises:
            Refused: It cannot be a labelled structure.
        """
        if not isinstance(frame, dict):
            raise Refused("bad-frame", f"a {type(frame).__name__}, expected an object")
        try:
            structure = frame["structure"]
            matrix = structure["lattice"]["matrix"]
            sites = structure["sites"]
            numbers = _atomic_numbers(sites)
            positions = [site["xyz"] for site in sites]
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise Refused("bad-structure", f"{type(error).__name__}: {error}") from None
        forces, stress = frame.get("force"), frame.get("stress")
        return Structure(
            numbers=np.array(numbers, dtype=np.uint8),
            positions=_numbers("positions", positions),
            cell=_numbers("cell", matrix),
            pbc=PERIODIC,
            energy=frame.get(self.label),
            forces=None if forces is None else _numbers("forces", forces),
            stress=None if stress is None else _numbers("stress", stress) * -KBAR,
            group=hash_id(f"mp:{material}"),
            key=hash_id(f"mptrj:{material}/{frame_id}"),
        )


def _numbers(name: str, values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return nested lists as an array.

    Raises:
        Refused: They are ragged, or hold something that is no number.
    """
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"bad-{name}", error) from None


def _atomic_numbers(sites: Any) -> list[int]:
    """Return the atomic numbers of the sites.

    Raises:
        Refused: A site is shared by several elements, occupied in part, or held by no element.
    """
    try:
        numbers = [ATOMIC_NUMBERS[kind["element"]] for (kind,) in map(_SPECIES, sites) if kind["occu"] == 1]
        usual = len(numbers) == len(sites)
    except (KeyError, TypeError, ValueError):
        usual = False
    return numbers if usual else [_atomic_number(site["species"]) for site in sites]


def _atomic_number(species: Any) -> int:
    """Return the atomic number of a site.

    Raises:
        Refused: The site is shared by several elements, occupied in part, or held by no element.
    """
    if len(species) != 1 or species[0].get("occu", 1) != 1:
        found = ", ".join(f"{kind.get('element')} {kind.get('occu')}" for kind in species[:4])
        raise Refused("partial-occupancy", found)
    number = ATOMIC_NUMBERS.get(species[0]["element"])
    if number is None:
        raise Refused("bad-atomic-number", f"element {species[0]['element']!r}"[:100])
    return number
