"""Where the published archives are: addresses, sizes, checksums. Licences and DOIs are what the readers state.

How each entry is known:

- ANI-1x: file 18112775 of figshare article 10047041; size and md5 as figshare states them, quoted alike by
  three independent download scripts.
- QM7-X: zenodo record 4288677; md5 from schnetpack's loader; sizes from a listing of the earlier record
  3905361, whose md5 are the same. For 6000.xz two md5 that differ in one digit are in circulation: either is
  accepted.
- OC20: addresses and md5 from the Open Catalyst documentation. An early version of it had the md5 of 2M and
  20M the other way round: for these two either is accepted. Its sizes are rounded.
- OC22: address and md5 from the same documentation; sizes are rounded.
- MPtrj: file 41619375 of figshare article 23713842, version 2; size and md5 as figshare states them.

figshare.com/ndownloader answers programs with an empty 202, a challenge for browsers, since 2026; the hosts
used here lead to the same files and did not (github.com/neuromorphs/tonic/pull/337).
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from gfm.errors import ConfigError
from gfm.runtime.registry import suggest

__all__ = ["ARCHIVES", "Archive", "RemoteFile", "folder_of", "recipe_lines"]


@dataclass(frozen=True)
class RemoteFile:
    """One file on a server.

    Attributes:
        name: What it is called here.
        urls: Where it is; the later ones are asked when an earlier one refuses.
        md5: The checksums that are right: one, or two where the sources disagree.
        size: Its exact size in bytes, where that is known.
        about: Its size in bytes, roughly, where the exact one is not known.
        unpacked: Bytes that unpacking it takes, roughly; None for what is not unpacked.
    """

    name: str
    urls: tuple[str, ...]
    md5: tuple[str, ...]
    size: int | None = None
    about: int = 0
    unpacked: int | None = None

    @property
    def nbytes(self) -> int:
        """Size, exact or roughly."""
        return self.about if self.size is None else self.size


@dataclass(frozen=True)
class Archive:
    """One published data set.

    Attributes:
        files: Files that belong to every download.
        splits: Files to choose from by name.
        path: What a recipe's source reads, relative to the download; ``{folder}`` is an unpacked archive.
    """

    files: tuple[RemoteFile, ...] = ()
    splits: dict[str, RemoteFile] = field(default_factory=dict)
    path: str = "."

    def chosen(self, name: str, splits: list[str]) -> list[RemoteFile]:
        """Return the files of a download.

        Raises:
            ConfigError: A split is not known, or one must be named.
        """
        for split in splits:
            if split not in self.splits:
                known = ", ".join(self.splits) or "none, it comes as a whole"
                raise ConfigError(f"{name} has no split {split!r}.{suggest(split, self.splits)} Known: {known}")
        if self.splits and not splits:
            sizes = ", ".join(f"{split} ({file.nbytes / 1e9:.1f} GB)" for split, file in self.splits.items())
            raise ConfigError(f"{name} comes in splits: say --split NAME, once or more. There are {sizes}")
        return [*self.files, *(self.splits[split] for split in dict.fromkeys(splits))]


def _figshare(file_id: int) -> tuple[str, ...]:
    return (
        f"https://ndownloader.figshare.com/files/{file_id}",
        f"https://api.figshare.com/v2/file/download/{file_id}",
    )


def _zenodo(name: str, md5: tuple[str, ...], size: int | None = None) -> RemoteFile:
    return RemoteFile(
        name, (f"https://zenodo.org/records/4288677/files/{name}?download=1",), md5, size, 100_000
    )


def _open_catalyst(name: str, md5: tuple[str, ...], about: float, unpacked: float | None) -> RemoteFile:
    url = f"https://dl.fbaipublicfiles.com/opencatalystproject/data/{name}"
    return RemoteFile(
        name.rpartition("/")[2], (url,), md5, None, int(about), None if unpacked is None else int(unpacked)
    )


def _s2ef(split: str, md5: tuple[str, ...], about: float) -> RemoteFile:
    # Inside the tar file every shard stays packed as .xz, so unpacking takes what the archive took.
    return _open_catalyst(f"s2ef_{split}.tar", md5, about, about)


_MD5_20M, _MD5_2M = "863bc983245ffc0285305a1850e19cf7", "953474cb93f0b08cdc523399f03f7c36"

ARCHIVES: dict[str, Archive] = {
    "ani1x": Archive(
        (
            RemoteFile(
                "ani1x-release.h5", _figshare(18112775), ("98090dd6679106da861f52bed825ffb7",), 5_590_846_027
            ),
        ),
        path="ani1x-release.h5",
    ),
    "qm7x": Archive(
        (
            _zenodo("1000.xz", ("b50c6a5d0a4493c274368cf22285503e",), 715_361_604),
            _zenodo("2000.xz", ("4418a813daf5e0d44aa5a26544249ee6",), 1_043_743_376),
            _zenodo("3000.xz", ("f7b5aac39a745f11436047c12d1eb24e",), 2_052_043_036),
            _zenodo("4000.xz", ("26819601705ef8c14080fa7fc69decd4",), 1_461_283_500),
            _zenodo("5000.xz", ("85ac444596b87812aaa9e48d203d0b70",), 1_135_294_700),
            _zenodo(
                "6000.xz",
                ("787fc4a9036af0e67c034a30ad854c07", "787fc4a9036af0e67c034a30adc54c07"),
                2_016_065_508,
            ),
            _zenodo("7000.xz", ("5ecce00a188410d06b747cb683d8d347",), 1_104_141_872),
            _zenodo("8000.xz", ("c893ae88b8f5c32541c3f024fc1daa45",), 89_426_884),
            _zenodo("DupMols.dat", ("5d886ccac38877c8cb26c07704dd1034",)),
        )
    ),
    "oc20": Archive(
        splits={
            "200K": _s2ef("train_200K", ("f8d0909c2623a393148435dede7d3a46",), 344e6),
            "2M": _s2ef("train_2M", (_MD5_2M, _MD5_20M), 3.4e9),
            "20M": _s2ef("train_20M", (_MD5_20M, _MD5_2M), 34e9),
            "all": _s2ef("train_all", ("12a7087bfd189a06ccbec9bc7add2bcd",), 225e9),
            "val_id": _s2ef("val_id", ("f57f7f5c1302637940f2cc858e789410",), 1.7e9),
            "val_ood_ads": _s2ef("val_ood_ads", ("431ab0d7557a4639605ba8b67793f053",), 1.7e9),
            "val_ood_cat": _s2ef("val_ood_cat", ("532d6cd1fe541a0ddb0aa0f99962b7db",), 1.7e9),
            "val_ood_both": _s2ef("val_ood_both", ("5731862978d80502bbf7017d68c2c729",), 1.9e9),
        },
        path="{folder}/",
    ),
    "oc22": Archive(
        (
            _open_catalyst(
                "oc22/s2ef_total_train_val_test_lmdbs.tar.gz",
                ("ebea523c6f8d61248a37b4dd660b11e6",), 20e9, 71e9,
            ),
        ),
        # The test splits beside it have no labels.
        path="{folder}/**/s2ef-total/train/*.lmdb",
    ),
    "mptrj": Archive(
        (
            RemoteFile(
                "MPtrj_2022.9_full.json",
                _figshare(41619375),
                ("50ead5f27f9a4f6beb7564c4188f1e9f",),
                12_188_168_685,
            ),
        ),
        path="MPtrj_2022.9_full.json",
    ),
}  # fmt: skip


def recipe_lines(name: str, directory: Path, files: list[Path]) -> list[str]:
    """Return a recipe that reads what was downloaded, one source for each unpacked folder."""
    place = ARCHIVES[name].path
    paths = {name: directory / place}
    if "{folder}" in place:
        folders = [folder_of(file) for file in files if folder_of(file) != file]
        paths = {
            name if len(folders) == 1 else f"{name}-{folder.name}": folder / place.removeprefix("{folder}/")
            for folder in folders
        }
    lines = [f"output: {_scalar(f'out/{name}')}", "sources:"]
    for source, path in paths.items():
        lines.append(f"  - {{name: {source}, reader: {name}, path: {_scalar(path.as_posix())}}}")
    return lines


def _scalar(text: str) -> str:
    """Return a text as YAML reads it back, in quotes only where it needs them."""
    return text if re.fullmatch(r"[\w./][\w./*+-]*", text) else json.dumps(text)


def folder_of(file: Path) -> Path:
    """Return the folder that a tar file is unpacked to; the file itself if it is none."""
    for suffix in (".tar", ".tar.gz", ".tgz", ".tar.xz"):
        if file.name.endswith(suffix):
            return file.with_name(file.name.removesuffix(suffix))
    return file
