"""MPI: how many ranks there are, and that no failure leaves a rank waiting."""

import subprocess
import sys
from pathlib import Path

import pytest

from gfm.errors import ConfigError
from gfm.runtime.mpi import failing_together, launched, world


def _ranks(number: int, tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script on ranks; a rank that hangs fails the test by its timeout."""
    file = tmp_path / "script.py"
    file.write_text(script)
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec), "-n", str(number), sys.executable, str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({}, 0),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, 2),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, 8),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 0),
    ],
    ids=["alone", "mpich", "openmpi", "srun", "batch script"],
)
def test_the_launcher_says_how_many_ranks_there_are(environ: dict[str, str], ranks: int) -> None:
    assert launched(environ) == ranks


def test_a_single_process_has_no_communicator_and_plain_errors() -> None:
    assert world() is None
    with pytest.raises(ConfigError, match="as written"), failing_together():
        raise ConfigError("as written")


@pytest.mark.mpi
def test_an_error_on_all_ranks_is_one_message_and_its_exit_code(tmp_path: Path) -> None:
    script = """
import sys
from gfm.errors import ConfigError
from gfm.runtime.mpi import failing_together, world
comm = world()
assert comm.size == 2
try:
    with failing_together():
        raise ConfigError("the same everywhere")
except ConfigError as error:
    print(f"gfm: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""
    result = _ranks(2, tmp_path, script)
    assert result.stderr.count("the same everywhere") == 1
    assert result.returncode == 2


@pytest.mark.mpi
def test_an_error_on_one_rank_takes_all_down_with_its_code(tmp_path: Path) -> None:
    script = """
from gfm.errors import DataError
from gfm.runtime.mpi import failing_together, world
comm = world()
with failing_together():
    if comm.rank == 1:
        raise DataError("only here")
    comm.Barrier()
"""
    result = _ranks(2, tmp_path, script)
    assert "gfm: rank 1 of 2: only here" in result.stderr
    assert result.returncode == 3


@pytest.mark.mpi
@pytest.mark.parametrize("thread", [False, True])
def test_an_unexpected_error_takes_all_down_with_its_traceback(tmp_path: Path, thread: bool) -> None:
    script = f"""
import threading
from gfm.runtime.mpi import world
comm = world()
def fail():
    raise RuntimeError("a bug")
if comm.rank == 0:
    if {thread}:
        threading.Thread(target=fail).start()
    else:
        fail()
comm.Barrier()
"""
    result = _ranks(2, tmp_path, script)
    assert result.returncode != 0
    assert "rank 0 of 2 failed" in result.stderr
    assert "RuntimeError: a bug" in result.stderr


@pytest.mark.mpi
def test_ranks_that_mpi_does_not_see_are_refused(tmp_path: Path) -> None:
    script = """
import os
os.environ.pop("PMI_FD", None)
os.environ["PMI_SIZE"] = "1"
from mpi4py import MPI
os.environ["PMI_SIZE"] = "2"
from gfm.errors import ResourceError
from gfm.runtime.mpi import world
try:
    world()
except ResourceError as error:
    print("refused", error)
"""
    file = tmp_path / "singleton.py"
    file.write_text(script)
    result = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=120)
    assert "refused the launcher started 2 ranks but MPI sees 1" in result.stdout, result.stderr


@pytest.mark.mpi
def test_all_ranks_agree_on_a_meeting_place(tmp_path: Path) -> None:
    script = """
import socket
from gfm.runtime.mpi import rendezvous, world
comm = world()
place = rendezvous(comm)
assert place.one_node and place.host == "127.0.0.1"
assert (place.listener is not None) == (comm.rank == 0)
if comm.rank == 1:
    socket.create_connection((place.host, place.port), timeout=30).close()
comm.Barrier()
print("met")
"""
    result = _ranks(2, tmp_path, script)
    # Two ranks may print in one line; nothing else is printed.
    assert "".join(result.stdout.split()) == "metmet", result.stderr


@pytest.mark.mpi
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="only Linux has /dev/shm")
def test_a_killed_job_leaves_nothing_in_shared_memory(tmp_path: Path) -> None:
    script = """
import os, pathlib, signal
from gfm.runtime.mpi import world
comm = world()
mapped = pathlib.Path("/proc/self/maps").read_text()
names = sorted({line.split(maxsplit=5)[-1] for line in mapped.splitlines() if "/dev/shm/mpich" in line})
comm.Barrier()
if comm.rank == 1:
    pathlib.Path("names").write_text(chr(10).join(names))
    os.kill(os.getpid(), signal.SIGKILL)
comm.Barrier()
"""
    result = _ranks(2, tmp_path, script)
    assert result.returncode != 0
    names = [name.removesuffix(" (deleted)") for name in (tmp_path / "names").read_text().splitlines()]
    assert not [name for name in names if Path(name).exists()]
