"""Configuration files: frozen pydantic models from YAML, dotted overrides, errors a person can act on."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from gfm.errors import ConfigError
from gfm.runtime.registry import suggest

__all__ = ["Config", "apply_overrides", "dump_config", "load_config", "parse_config", "read_yaml"]


C = TypeVar("C", bound="Config")


class Config(pydantic.BaseModel):
    """Base of every configuration: frozen, unknown keys refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: The file is missing or not readable, is not YAML, or is not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(data).__name__}")
    return data


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return the mapping with ``key.sub=value`` settings applied; values are read as YAML.

    Raises:
        ConfigError: An override has no ``=``, its value is not YAML, or it goes through something that is not a
            mapping.
    """
    result = _copy(data)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise ConfigError(f"override {override!r}: expected key.sub=value")
        *parents, last = dotted.split(".")
        node = result
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r}: {name!r} is a value, not a mapping")
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not readable as YAML: {error}") from error
    return result


def parse_config(cls: type[C], data: dict[str, Any], where: str) -> C:
    """Validate a mapping; ``where`` names its source in errors.

    Raises:
        ConfigError: One line for each thing that is wrong, with a suggestion for misspelt keys.
    """
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as error:
        lines = [_explain(problem, cls) for problem in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def load_config(cls: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file into a configuration, with overrides applied.

    Raises:
        ConfigError: The file or a value in it cannot be used; the text says which and why.
    """
    return parse_config(cls, apply_overrides(read_yaml(path), overrides), str(path))


def dump_config(config: Config) -> str:
    """Return a configuration as YAML that loads to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _copy(data: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in data.items()}


def _explain(problem: Any, cls: type[Config]) -> str:
    """Say in one line what is wrong with one key."""
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        return f"{location}: unknown key.{suggest(name, _known_keys(cls, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{location}: missing, and there is no default"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{location}: {message} (got {problem['input']!r})" if location else message


def _known_keys(cls: type[Config], location: Sequence[Any]) -> list[str]:
    """Return the keys of the nested configuration at a location; all keys below ``cls`` where that fails."""
    model: Any = cls
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return sorted(_all_keys(cls))
        nested = [kind for kind in _models_in(field.annotation)]
        if len(nested) != 1:
            return sorted(_all_keys(cls))
        model = nested[0]
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[Config]]:
    """Return the configuration classes that occur in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _all_keys(cls: type[Config]) -> set[str]:
    keys = set(cls.model_fields)
    for field in cls.model_fields.values():
        for model in _models_in(field.annotation):
            keys |= _all_keys(model)
    return keys
