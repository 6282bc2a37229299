"""OC20 S2EF: extended XYZ with a sidecar that names each frame's system, or LMDB of pickled records.

Source: Chanussot et al., doi:10.1021/acscatal.0c04525.
"""

from typing import ClassVar, Literal

from ingest.readers.base import Published
from ingest.readers.open_catalyst import UNITS, OpenCatalyst

__all__ = ["Oc20"]


class Oc20(OpenCatalyst):
    """Reads ``<n>.extxyz.xz`` with ``<n>.txt.xz``, and ``data.0000.lmdb``, ....

    Attributes:
        energy: ``total`` as published, or ``adsorption``: total minus the sidecar's reference energy. What an
            LMDB holds was decided by its writer and is not said in it: state here what it is.
    """

    NAME: ClassVar[str] = "oc20"
    UNITS: ClassVar[dict[str, str]] = {
        **UNITS,
        "reference energy (sidecar)": "eV; adsorption energy = energy - reference energy",
    }

    energy: Literal["total", "adsorption"] = "total"

    @property
    def adsorption(self) -> bool:
        """Whether the reference energy of a text shard's sidecar is subtracted."""
        return self.energy == "adsorption"

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published("RPBE (VASP)", "CC-BY-4.0", "10.1021/acscatal.0c04525", self.energy)
