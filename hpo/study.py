"""The study file: what is searched, with what budget, where it is kept; and the trials a study brought forth.

A space names settings of `train.config.TrainConfig` by dotted path. All of it is checked before any worker
starts: every path, and both ends of every range, against the training configuration.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pydantic
import yaml

from gfm.errors import ConfigError, MissingDataError
from gfm.runtime.config import Config, apply_overrides, parse_config, read_yaml
from gfm.runtime.registry import suggest
from hpo.discard import Discard, KeepAll
from hpo.space import Range, setting_paths, with_setting

if TYPE_CHECKING:
    from train.config import TrainConfig

__all__ = [
    "Finish",
    "Sampler",
    "StudyConfig",
    "check_space",
    "finished_trials",
    "load_study",
    "read_study",
    "trial_config",
    "write_study",
]

# The resolved study file, in the folder of the study.
_STUDY_FILE = "study.yaml"

# What may change when a study goes on; anything else would mix trials that cannot be compared.
_MAY_CHANGE = {"trials", "workers", "finish", "retries", "heartbeat_seconds"}

# Settings the study itself decides.
_RESERVED = {
    "dataset": "all trials of a study are compared on one dataset",
    "output": "each trial has its own folder",
    "epochs": "every trial trains for the same number of epochs, the study's `epochs`",
    "store": "the samples are loaded once for all trials",
    "threads": "it follows from cores, workers and ranks",
}


class Sampler(Config):
    """How settings are proposed.

    Attributes:
        kind: "tpe" learns from finished and discarded trials; "random" does not.
        startup_trials: TPE proposes at random until this many trials are finished.
    """

    kind: Literal["tpe", "random"] = "tpe"
    startup_trials: int = pydantic.Field(default=10, ge=1)


class Finish(Config):
    """The best trials go on from their checkpoints.

    Attributes:
        best: How many of the complete trials.
        epochs: To how many epochs in all.
    """

    best: int = pydantic.Field(ge=1)
    epochs: int = pydantic.Field(ge=1)


class StudyConfig(Config):
    """A study.

    Attributes:
        name: Name in the storage.
        output: Folder of the study: journal, trials, summary.
        base: A training configuration (mapping, or path of a YAML file beside the study file).
        space: Dotted path in the training configuration to what is searched.
        storage: None for a journal file in `output`; `sqlite:///…`; `postgresql+psycopg://…`.
        sampler: How settings are proposed.
        discard: Which trials stop early.
        epochs: For how long every trial trains.
        trials: How many trials there are in all, counted over all workers and reruns.
        workers: How many trials train at once on this machine.
        ranks: How many MPI ranks train one trial.
        seed: Of the proposals; the training's seed is the base's.
        finish: The best trials go on from their checkpoints.
        retries: How often a trial whose worker died is taken up again.
        heartbeat_seconds: How often a running trial shows a database that its worker lives.
    """

    name: str = pydantic.Field(default="study", min_length=1)
    output: Path
    base: dict[str, Any]
    space: dict[str, Range] = pydantic.Field(min_length=1)
    storage: str | None = None
    sampler: Annotated[
        Sampler, pydantic.BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value)
    ] = Sampler()
    discard: Discard = KeepAll()
    epochs: int = pydantic.Field(default=10, ge=1)
    trials: int = pydantic.Field(default=20, ge=1)
    workers: int = pydantic.Field(default=1, ge=1)
    ranks: int = pydantic.Field(default=1, ge=1)
    seed: int = pydantic.Field(default=0, ge=0)
    finish: Finish | None = None
    retries: int = pydantic.Field(default=2, ge=0)
    heartbeat_seconds: int = pydantic.Field(default=20, ge=1)

    @pydantic.model_validator(mode="after")
    def _longer(self) -> Self:
        if self.finish is not None and self.finish.epochs <= self.epochs:
            raise ValueError(
                f"finish.epochs counts from the beginning: {self.finish.epochs} is not above the trials' "
                f"{self.epochs}"
            )
        return self


def load_study(path: str | Path, overrides: tuple[str, ...] = ()) -> StudyConfig:
    """Read and check a study file; paths in it are relative to the current directory, only `base` to the file.

    Args:
        path: The YAML file; `base`, where it is a path, is looked for beside it.
        overrides: `key.sub=value` settings.

    Raises:
        ConfigError: Something in it cannot be used; the text says what, and what may have been meant.
    """
    data = apply_overrides(read_yaml(path), overrides)
    if isinstance(data.get("base"), str):
        data["base"] = read_yaml(Path(path).parent / data["base"])
    config = parse_config(StudyConfig, data, str(path))
    # Absolute from here on: workers, reruns and readers may stand in another directory.
    base = dict(config.base)
    if isinstance(base.get("dataset"), str):
        base["dataset"] = str(Path(base["dataset"]).resolve())
    config = config.model_copy(update={"output": config.output.resolve(), "base": base})
    check_space(config, str(path))
    return config


def check_space(config: StudyConfig, where: str) -> None:
    """Check every dotted path, and the ends of every range, against the training configuration.

    Raises:
        ConfigError: A path is unknown or decided by the study, or the training would refuse a value.
    """
    from train.config import TrainConfig

    known = sorted(set(setting_paths(TrainConfig)) - set(_RESERVED))
    for path, searched in config.space.items():
        if path in _RESERVED:
            raise ConfigError(f"{where}: space.{path}: cannot be searched: {_RESERVED[path]}")
        if path not in known:
            raise ConfigError(
                f"{where}: space.{path}: the training has no such setting.{suggest(path, known)} "
                f"Settings: {', '.join(known)}"
            )
        for value in searched.edges():
            trial_config(config, {path: value}, config.output, f"{where}: space.{path} = {value!r}")


def trial_config(
    config: StudyConfig, params: Mapping[str, Any], folder: Path, where: str = "trial"
) -> "TrainConfig":
    """Return the training configuration of one trial: the base with the trial's settings in it.

    Args:
        config: The study.
        params: Value of each dotted path.
        folder: Run folder of the trial.
        where: Named in errors.

    Raises:
        ConfigError: The training does not accept the settings.
    """
    from train.config import TrainConfig

    data: dict[str, Any] = dict(config.base)
    for path, value in params.items():
        data = with_setting(data, path.split("."), value, where)
    data.update(output=str(folder), epochs=config.epochs)
    cores = len(os.sched_getaffinity(0))
    data.setdefault("plots", False)  # of many trials nobody looks at
    data.setdefault("threads", max(1, cores // (config.workers * config.ranks)))
    return parse_config(TrainConfig, data, where)


def write_study(config: StudyConfig) -> None:
    """Write the resolved study into its folder, unless a study that cannot be continued so lies there.

    Raises:
        ConfigError: The folder holds a study that differs in more than its budget.
    """
    from gfm.runtime.runs import write_whole

    if (config.output / _STUDY_FILE).exists():
        old, new = read_study(config.output).model_dump(), config.model_dump()
        changed = [key for key in new if key not in _MAY_CHANGE and old[key] != new[key]]
        if changed:
            raise ConfigError(
                f"{config.output} holds a study with another {', '.join(changed)}: its trials could not be "
                f"compared with new ones. Name another `output`; only {', '.join(sorted(_MAY_CHANGE))} may "
                "change."
            )
    write_whole(config.output / _STUDY_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def read_study(output: str | Path) -> StudyConfig:
    """Read the study of a folder that `gfm hpo run` made, wherever it was moved since.

    Raises:
        MissingDataError: There is none.
    """
    path = Path(output) / _STUDY_FILE
    if not path.is_file():
        raise MissingDataError(
            f"{output}: no study here (no {_STUDY_FILE}); `gfm hpo run STUDY.yaml` makes one"
        )
    config = parse_config(StudyConfig, read_yaml(path), str(path))
    return config.model_copy(update={"output": Path(output).resolve()})


def finished_trials(output: str | Path) -> list[dict[str, Any]]:
    """Return the complete trials of a study, best first; those that went on count with what they reached.

    Returns:
        For each: trial (its number), path (run folder), value (validation loss), energy_mae_mev_per_atom,
        forces_mae_ev_per_angstrom (both of validation), joules (of all its training), joules_method, epochs,
        finished (whether it went on), params.

    Raises:
        MissingDataError: There is no study in the folder.
    """
    from hpo.trials import complete_trials, open_study

    with open_study(read_study(output)) as opened:
        return complete_trials(opened)
