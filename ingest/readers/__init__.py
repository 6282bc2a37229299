"""One file per published layout, each with its table of units."""

from gfm.runtime.registry import Registry

__all__ = ["READERS"]

READERS = Registry(
    "reader",
    {
        "ani1x": "ingest.readers.ani1x:Ani1x",
        "ase_db": "ingest.readers.ase_db:AseDb",
        "extxyz": "ingest.readers.extxyz:ExtXyz",
        "hdf5": "ingest.readers.hdf5:Hdf5",
        "mptrj": "ingest.readers.mptrj:MPtrj",
        "oc20": "ingest.readers.oc20:Oc20",
        "oc22": "ingest.readers.oc22:Oc22",
        "qm7x": "ingest.readers.qm7x:Qm7x",
    },
)
