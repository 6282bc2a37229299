"""What the operating system refuses becomes a message and an exit code; mistakes stay tracebacks."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from gfm.errors import DataError, ResourceError, from_system


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, DataError),
        (errno.ENOTDIR, DataError),
        (errno.ENOSPC, ResourceError),
        (errno.EMFILE, ResourceError),
    ],
)
def test_the_kind_follows_from_the_number_and_the_path_is_named(number: int, kind: type) -> None:
    known = from_system(OSError(number, "why", "some/path"))
    assert type(known) is kind
    assert str(known) == "some/path: why"


def test_an_error_of_another_kind_is_not_explained_away() -> None:
    assert from_system(OSError("no number")) is None
    assert from_system(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None


def test_the_command_says_which_path_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    gfm = str(Path(sys.executable).with_name("gfm"))
    command = [gfm, "sample-data", str(file / "raw"), "--only", "mptrj", "--structures", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (DataError.exit_code, "")
    assert done.stderr.startswith("gfm: ")
    assert f"{file}/raw" in done.stderr
    assert "Traceback" not in done.stderr
