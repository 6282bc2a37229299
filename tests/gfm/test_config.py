"""Configuration: overrides, and errors that say which key, why, and what was meant."""

from pathlib import Path

import pytest

from gfm.errors import ConfigError
from gfm.runtime.config import Config, apply_overrides, dump_config, load_config, parse_config
from gfm.runtime.registry import Registry


class Inner(Config):
    hidden: int = 4
    cutoff: float = 5.0


class Outer(Config):
    name: str
    model: Inner = Inner()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_file_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "name: x\nmodel: {hidden: 8}\n")
    config = load_config(Outer, path, ["model.cutoff=4.5", "name=null_is_text"])
    assert config == Outer(name="null_is_text", model=Inner(hidden=8, cutoff=4.5))
    again = load_config(Outer, write(tmp_path / "b.yaml", dump_config(config)))
    assert again == config


def test_overrides_leave_the_original_alone() -> None:
    data = {"model": {"hidden": 1}}
    assert apply_overrides(data, ["model.hidden=2", "a.b.c=3"]) == {
        "model": {"hidden": 2},
        "a": {"b": {"c": 3}},
    }
    assert data == {"model": {"hidden": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nmodel: {hiden: 8}\n", r"model\.hiden: unknown key\. Did you mean 'hidden'\?"),
        ("name: x\nmodle: {}\n", r"modle: unknown key\. Did you mean 'model'\?"),
        ("model: {}\n", "name: missing, and there is no default"),
        ("name: x\nmodel: {hidden: many}\n", r"model\.hidden: .*integer.*\(got 'many'\)"),
        ("- a\n", "expected a mapping"),
        ("a: [1\n", "not readable as YAML"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, write(tmp_path / "c.yaml", text))


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Outer, {"model": {"hidden": "x", "cutof": 1}}, "here")
    assert str(caught.value).count("here: ") == 3


@pytest.mark.parametrize("override", ["name", "=3", "name.sub=3", "name=[", "name=: :"])
def test_bad_overrides(override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        apply_overrides({"name": "x"}, [override])


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x02\xff")
    with pytest.raises(ConfigError, match=r"model\.pt: not readable"):
        load_config(Outer, tmp_path / "model.pt")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(Outer, tmp_path / "none.yaml")


def test_registry_suggests() -> None:
    registry = Registry("thing", {"painn": "gfm.errors:DataError", "egnn": "gfm.errors:ConfigError"})
    assert registry.get("painn").__name__ == "DataError"
    assert registry.names() == ["egnn", "painn"]
    with pytest.raises(
        ConfigError, match=r"no thing is called 'pain'\. Did you mean 'painn'\? Known: egnn, painn"
    ):
        registry.get("pain")
