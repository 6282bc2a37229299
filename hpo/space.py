"""The space of a study: ranges of settings, named by their dotted paths in the training configuration."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

import pydantic

from gfm.errors import ConfigError
from gfm.runtime.config import Config

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Choice", "FloatRange", "IntRange", "Range", "distributions", "setting_paths", "with_setting"]

# Named outside of the classes, whose fields are called int and float.
_IntBounds = tuple[int, int]
_FloatBounds = tuple[float, float]
_IntStep = int
_Scalar = bool | int | float | str | None


class IntRange(Config):
    """Integers from low to high, both included; `log` samples their logarithm."""

    int: _IntBounds
    log: bool = False
    step: _IntStep = pydantic.Field(default=1, ge=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        _check_bounds(*self.int, log=self.log)
        if self.log and self.step > 1:
            raise ValueError("log and step do not go together")
        return self

    def edges(self) -> list[Any]:
        """Return the values that a configuration has to accept for all of them to be usable."""
        return list(self.int)


class FloatRange(Config):
    """Real numbers from low to high; `log` samples their logarithm."""

    float: _FloatBounds
    log: bool = False

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        _check_bounds(*self.float, log=self.log)
        return self

    def edges(self) -> list[Any]:
        """Return the values that a configuration has to accept for all of them to be usable."""
        return list(self.float)


class Choice(Config):
    """One of several values."""

    categorical: list[_Scalar] = pydantic.Field(min_length=1)

    def edges(self) -> list[Any]:
        """Return the values that a configuration has to accept for all of them to be usable."""
        return list(self.categorical)


def _check_bounds(low: float, high: float, *, log: bool) -> None:
    if not low <= high:
        raise ValueError(f"the low end {low:g} is above the high end {high:g}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range begins above 0, not at {low:g}")


def _kind_of(value: Any) -> str | None:
    """Tell the kinds of range apart by the one key that each has of its own."""
    keys = (
        value if isinstance(value, Mapping) else type(value).model_fields if isinstance(value, Config) else ()
    )
    found = [kind for kind in ("int", "float", "categorical") if kind in keys]
    return found[0] if len(found) == 1 else None


Range = Annotated[
    Annotated[IntRange, pydantic.Tag("int")]
    | Annotated[FloatRange, pydantic.Tag("float")]
    | Annotated[Choice, pydantic.Tag("categorical")],
    pydantic.Discriminator(
        _kind_of,
        custom_error_type="range",
        custom_error_message="expected {int: [low, high]}, {float: [low, high]} or {categorical: [values]}",
    ),
]


def with_setting(data: Mapping[str, Any], path: list[str], value: Any, where: str) -> dict[str, Any]:
    """Return a copy of a mapping with one nested value set."""
    name, *rest = path
    if rest:
        inner = data.get(name) or {}
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{where}: base.{name} is {inner!r}; a setting below it needs a mapping there")
        value = with_setting(inner, rest, value, where)
    return {**data, name: value}


def setting_paths(model: type[Config], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all single settings of a configuration."""
    for name, field in model.model_fields.items():
        parts = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [part for part in parts if isinstance(part, type) and issubclass(part, Config)]
        if not nested:
            yield prefix + name
        for part in nested:
            yield from setting_paths(part, f"{prefix}{name}.")


def distributions(space: Mapping[str, IntRange | FloatRange | Choice]) -> "dict[str, BaseDistribution]":
    """Return a space as Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    result: dict[str, BaseDistribution] = {}
    for path, searched in space.items():
        if isinstance(searched, IntRange):
            result[path] = IntDistribution(*searched.int, log=searched.log, step=searched.step)
        elif isinstance(searched, FloatRange):
            result[path] = FloatDistribution(*searched.float, log=searched.log)
        else:
            result[path] = CategoricalDistribution(searched.categorical)
    return result
