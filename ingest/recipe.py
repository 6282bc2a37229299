"""The recipe: what to read, to refuse, how to split, where to write. A dataset depends on nothing else."""

from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from gfm.data.splits import SPLITS
from gfm.runtime.cluster import ClusterConfig
from gfm.runtime.config import Config, parse_config
from ingest.readers import READERS
from ingest.readers.base import Reader

__all__ = ["Filters", "Outliers", "Recipe", "Source", "SplitConfig"]

# Settings that change where and how the work is done, not what comes out of it.
_NOT_CONTENT = {"output", "on_error", "cluster", "scratch"}


class Source(Config):
    """One published data set to read.

    Attributes:
        name: Name of the dataset inside the result; letters, digits, ``.``, ``_``, ``-``.
        reader: Which layout its files have.
        path: File, folder or glob; relative to the current directory.
        options: The reader's own options.
        theory: Level of theory for the manifest, where the files are not of the published one.
        licence: Licence for the manifest, where it is not that of the published data.
        doi: DOI for the manifest, where it is not that of the published data.
    """

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    reader: str
    path: str
    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    theory: str | None = None
    licence: str | None = None
    doi: str | None = None

    def open_reader(self) -> Reader:
        """Return the reader with its options.

        Raises:
            ConfigError: There is no such reader, or it has no such option.
        """
        cls: type[Reader] = READERS.get(self.reader)
        return parse_config(cls, self.options, f"source {self.name}: options")


class Outliers(Config):
    """How many robust standard deviations from the median of its own dataset a structure may be; null: any.

    What a deviation is, `ingest.outliers` says. The last three count on one side and in the logarithm.

    Attributes:
        energy: Of energy per atom after the linear reference, up and down.
        force: Of the largest force, up.
        stress: Of the largest component of the stress, up.
        distance: Of the shortest distance, down.
    """

    energy: float | None = pydantic.Field(default=20.0, ge=3)
    force: float | None = pydantic.Field(default=6.0, ge=3)
    stress: float | None = pydantic.Field(default=6.0, ge=3)
    distance: float | None = pydantic.Field(default=15.0, ge=3)


class Filters(Config):
    """What a sound record must keep to; null for no limit.

    Attributes:
        max_force: Largest force on an atom, eV/angstrom.
        max_stress: Largest component of the stress, eV/angstrom^3.
        min_distance: Shortest distance between two atoms, periodic images included, angstrom; at most the
            recipe's ``edges_cutoff``.
        max_atoms: Most atoms of a structure.
        outliers: What is refused for being unlike the rest of its own dataset.
    """

    max_force: float | None = pydantic.Field(default=500.0, gt=0)
    max_stress: float | None = pydantic.Field(default=None, gt=0)
    min_distance: float | None = pydantic.Field(default=0.3, gt=0)
    max_atoms: int | None = pydantic.Field(default=None, ge=1)
    outliers: Outliers | None = Outliers()


class SplitConfig(Config):
    """Expected shares of the splits, by group, and the seed of the partition."""

    train: float = pydantic.Field(default=0.8, ge=0)
    validation: float = pydantic.Field(default=0.1, ge=0)
    test: float = pydantic.Field(default=0.1, ge=0)
    seed: int = pydantic.Field(default=0, ge=0)

    @property
    def fractions(self) -> dict[str, float]:
        """Share by split, in the order of `SPLITS`."""
        return {name: getattr(self, name) for name in SPLITS}

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(sum(self.fractions.values()) - 1.0) > 1e-9:
            raise ValueError(f"train, validation and test add up to {sum(self.fractions.values())}, expected 1")
        return self


class Recipe(Config):
    """A whole ingestion.

    Attributes:
        output: The dataset's directory.
        format: Backend of the shards.
        sources: What to read; their order is the order of datasets and rows.
        filters: What is refused, with its reason in ``rejects/``.
        duplicates: Whether of structures that are equal in geometry and labels, to the last bit and in whatever
            file or dataset, one is kept: that whose dataset's name, then key, comes first.
        split: How groups are divided into train, validation and test.
        edges_cutoff: Cutoff at which the edges of each structure are counted, angstrom; at most 50.
        part_bytes: About how many bytes of raw files one task reads, and so what a task holds in memory.
        shard_bytes: What small parts are joined up to; a larger part is a shard of its own.
        scratch: Where packed files are unpacked that must be; by default inside the output. Removed at the end.
        on_error: Whether a file that cannot be read stops the run, or is counted as one reject.
        cluster: Where Dask computes.
    """

    output: Path
    format: Literal["adios", "zarr"] = "adios"
    sources: list[Source] = pydantic.Field(min_length=1, max_length=256)
    filters: Filters = Filters()
    duplicates: Literal["drop", "keep"] = "drop"
    split: SplitConfig = SplitConfig()
    edges_cutoff: float = pydantic.Field(default=5.0, gt=0, le=50)
    part_bytes: pydantic.ByteSize = pydantic.Field(default=pydantic.ByteSize(64 << 20), ge=1)
    shard_bytes: pydantic.ByteSize = pydantic.Field(default=pydantic.ByteSize(64 << 20), ge=1)
    scratch: Path | None = None
    on_error: Literal["stop", "reject"] = "stop"
    cluster: ClusterConfig = ClusterConfig()

    @pydantic.model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sources: two are called {', '.join(twice)}; names tell the datasets apart")
        return self

    @pydantic.model_validator(mode="after")
    def _distance_below_cutoff(self) -> Self:
        if self.filters.min_distance is not None and self.filters.min_distance > self.edges_cutoff:
            raise ValueError(
                f"filters.min_distance is {self.filters.min_distance} angstrom, above the edges_cutoff of "
                f"{self.edges_cutoff}: pairs are searched up to that only"
            )
        return self

    def content(self) -> dict[str, Any]:
        """Return the settings that the dataset's content depends on (a JSON value)."""
        content = self.model_dump(mode="json", exclude=_NOT_CONTENT)
        # What a source does not state is left out, so that datasets made before it could stay the same.
        content["sources"] = [
            {key: value for key, value in source.items() if value is not None} for source in content["sources"]
        ]
        return content
