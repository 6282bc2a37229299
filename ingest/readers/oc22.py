"""OC22 S2EF-Total: LMDB files of oxide slabs with adsorbates, total energies; mirrors keep them as OC20 text.

Source: Tran et al., doi:10.1021/acscatal.2c05426; ``s2ef_total_train_val_test_lmdbs.tar.gz``.
"""

from typing import ClassVar

from ingest.readers.base import Published
from ingest.readers.open_catalyst import UNITS, OpenCatalyst

__all__ = ["Oc22"]


class Oc22(OpenCatalyst):
    """Reads ``data.0000.lmdb``, ..., and ``<n>.extxyz.xz`` with ``<n>.txt.xz``."""

    NAME: ClassVar[str] = "oc22"
    UNITS: ClassVar[dict[str, str]] = {**UNITS, "y": "eV, total"}

    def about(self) -> Published:
        """Return what the manifest says of the published data."""
        return Published("PBE+U (VASP)", "CC-BY-4.0", "10.1021/acscatal.2c05426")
