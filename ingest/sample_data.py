"""Small raw files in the five published layouts, computed offline by real calculators from a seed.

They are for trying the whole line without a download: the layouts are the published ones to the letter, the
numbers are tight binding and effective-medium theory, and a NOTE.txt in every folder says so.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gfm.errors import ConfigError
from gfm.runtime.registry import suggest
from ingest.sample_catalysis import write_oc20, write_oc22
from ingest.sample_hdf5 import write_ani1x, write_qm7x
from ingest.sample_mptrj import write_mptrj

__all__ = ["SAMPLES", "write_sample_data"]

Writer = Callable[[Path, int, np.random.Generator, Callable[[], None]], Path]


@dataclass(frozen=True)
class Sample:
    """One source: how it is written, and what its note says of the labels."""

    write: Writer
    published: str
    labels: str


SAMPLES: dict[str, Sample] = {
    "ani1x": Sample(
        write_ani1x,
        "ANI-1x",
        """Geometries: closed-shell G2 molecules of H, C, N, O with Gaussian noise. Hartree and angstrom.
wb97x_dz.* is GFN2-xTB; wb97x_tz.* is GFN1-xTB for half of the rows, NaN for the others.
ccsd(t)_cbs.energy is NaN: not computed.
""",
    ),
    "qm7x": Sample(
        write_qm7x,
        "QM7-X",
        """Geometries: closed-shell G2 molecules of H, C, N, O, S, Cl, relaxed (-opt), and with Gaussian noise.
ePBE0+MBD, totFOR and eAT are GFN2-xTB; ePBE0 and pbe0FOR are GFN1-xTB; eMBD and vdwFOR are the differences.
DupMols.dat names a further conformer that is a copy of another, on purpose. eV and angstrom.
""",
    ),
    "oc20": Sample(
        write_oc20,
        "OC20 S2EF",
        """Energies and forces are ASE's EMT, on slabs of fcc metals and alloys with one adsorbate.
Reference energies in the sidecars are EMT of the clean slab and of the adsorbate alone.
Forces of fixed atoms are the true ones. eV and angstrom.
""",
    ),
    "oc22": Sample(
        write_oc22,
        "OC22 S2EF-Total",
        """y and force are ASE's EMT, on metal slabs (EMT knows no oxides)
with up to four adsorbates, mostly oxygen.
eV and angstrom.
""",
    ),
    "mptrj": Sample(
        write_mptrj,
        "MPtrj",
        """Energies, forces and stress are ASE's EMT, on strained and shaken metals and alloys.
A third of them have oxygen in a hollow; corrected_total_energy has -0.687 eV for each oxygen.
Magnetic moments, where not null, are 0. Material ids are invented.
eV and angstrom; stress in kBar with the sign of VASP.
""",
    ),
}

_NOTE = """COMPUTED SAMPLE - NOT THE PUBLISHED {published} DATA.

{structures} structures in the layout of {published}, written by `gfm sample-data` with seed {seed}.
{labels}
Names of files and keys are the published ones because readers look for them; the numbers are not.
"""


def write_sample_data(
    directory: str | Path,
    *,
    structures_per_source: int = 200,
    seed: int = 2026,
    sources: Iterable[str] | None = None,
    on_structure: Callable[[str], None] | None = None,
) -> dict[str, Path]:
    """Write sample files below ``DIR/<source>`` and return, for each source, the path that a recipe names.

    The same arguments give the same files. An earlier sample in the same place is replaced; anything else there
    is left alone.

    Args:
        directory: Where the folders of the sources go.
        structures_per_source: Structures of each source.
        seed: Seed of all random choices; each source draws from its own stream.
        sources: Names among `SAMPLES`; all by default.
        on_structure: Called with the source's name after every structure.

    Raises:
        ConfigError: An unknown source, fewer than one structure, or a folder in the way that is no sample.
    """
    names = list(SAMPLES) if sources is None else list(sources)
    for name in names:
        if name not in SAMPLES:
            raise ConfigError(f"no sample source {name!r}.{suggest(name, SAMPLES)} Known: {', '.join(SAMPLES)}")
    if structures_per_source < 1:
        raise ConfigError(f"structures per source: at least 1, got {structures_per_source}")
    folders = {name: Path(directory) / name for name in names}
    for folder in folders.values():
        if folder.exists() and not _is_sample(folder):
            raise ConfigError(
                f"{folder} exists and is no sample of ours (no NOTE.txt that says so): not replaced"
            )

    paths = {}
    for name, folder in folders.items():
        unfinished = folder.with_name(f"{name}.unfinished")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        made = 0

        def count(name: str = name) -> None:
            nonlocal made
            made += 1
            if on_structure is not None:
                on_structure(name)

        sample = SAMPLES[name]
        rng = np.random.default_rng([seed, list(SAMPLES).index(name)])
        path = sample.write(unfinished, structures_per_source, rng, count)
        note = _NOTE.format(published=sample.published, structures=made, seed=seed, labels=sample.labels)
        (unfinished / "NOTE.txt").write_text(note)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
        paths[name] = folder / path.relative_to(unfinished)
    return paths


def _is_sample(folder: Path) -> bool:
    """Say whether a folder is empty or one that this module wrote."""
    note = folder / "NOTE.txt"
    if note.is_file():
        return note.read_text().startswith("COMPUTED SAMPLE")
    return folder.is_dir() and not any(folder.iterdir())
