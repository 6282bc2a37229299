"""Run folders: lines that survive crashes, files replaced whole, where a run comes from."""

from pathlib import Path

import pytest

import gfm
from gfm.errors import CorruptDataError, ResourceError
from gfm.runtime.runs import RunFolder, provenance, write_whole


def test_records_come_back_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.records() == []
    records = [{"epoch": epoch, "loss": 1 / (epoch + 1)} for epoch in range(4)]
    for record in records:
        run.append(record)
    assert run.records() == records


def test_a_torn_last_line_is_left_out_and_other_damage_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append({"epoch": 0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "lo')
    assert run.records() == [{"epoch": 0}]
    run.cut_after(0)
    run.append({"epoch": 1})
    assert run.records() == [{"epoch": 0}, {"epoch": 1}]
    (tmp_path / "metrics.jsonl").write_text('{"epo\n{"epoch": 1}\n')
    with pytest.raises(CorruptDataError, match="line 1"):
        run.records()


def test_lines_of_later_epochs_are_cut(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for epoch in range(5):
        run.append({"epoch": epoch})
    run.cut_after(2)
    assert [record["epoch"] for record in run.records()] == [0, 1, 2]


def test_writing_fails_without_a_trace(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "old")
    with pytest.raises(TypeError):
        write_whole(tmp_path / "file", 5)  # type: ignore[arg-type]
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for run in (RunFolder(tmp_path / "file"), RunFolder(tmp_path / "file" / "below")):
        with pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written"):
            run.append({"epoch": 0})
        with pytest.raises(ResourceError, match=r"config\.yaml: cannot be written"):
            run.write_config("a: 1\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="No space left on device"):
        RunFolder(tmp_path).append({"epoch": 0})


def test_every_start_is_noted(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.add_provenance(ranks=1)
    run.add_provenance(ranks=2)
    import json

    starts = json.loads((tmp_path / "provenance.json").read_text())["starts"]
    assert [start["ranks"] for start in starts] == [1, 2]
    assert starts[0]["version"] == gfm.__version__
    assert starts[0]["packages"]["numpy"]


def test_provenance_tells_the_command_line() -> None:
    assert provenance(["gfm", "train"])["argv"] == ["gfm", "train"]
