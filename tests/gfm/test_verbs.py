"""The ``gfm`` command hands a verb's line to the verb: its help, its usage errors, its exit codes."""

import sys
from typing import Any

import pytest

from gfm.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gfm", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    code: Any = stopped.value.code
    return int(code or 0)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize(
    "verb", ["sample-data", "ingest", "store", "train", "hpo", "ensemble", "doctor", "demo"]
)
def test_every_verb_prints_its_help(
    verb: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, verb, flag) == 0
    assert f"gfm {verb}" in capsys.readouterr().out


def test_a_wrong_option_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "sample-data", "somewhere", "--structures", "many") == 2
    assert "--structures" in capsys.readouterr().err


def test_a_misspelt_verb_gets_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "sample-date") == 2
    assert "sample-data" in capsys.readouterr().err
