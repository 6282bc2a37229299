"""Dask workers as Slurm jobs, on a private Slurm: what is lost is replaced, and nothing is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from gfm.errors import ResourceError
from gfm.runtime import jobqueue, keeper
from gfm.runtime.cluster import ClusterConfig, open_client

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the queue often: this one has no other users."""
    monkeypatch.setattr(keeper, "ASK_SECONDS", 1.0)
    monkeypatch.setattr(jobqueue, "IDLE_SECONDS", 2)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ClusterConfig]:
    """Return a maker of configurations for the private Slurm; keywords replace settings."""

    def make(**changes: Any) -> ClusterConfig:
        settings = {
            "kind": "slurm",
            "workers": 2,
            "memory": "600MiB",
            "host": "127.0.0.1",
            "walltime": "00:10:00",
            "log_directory": tmp_path / "logs",
            "start_timeout": 60,
        }
        return ClusterConfig.model_validate({**settings, **changes})

    return make


def _workers(client: Any) -> dict[str, str]:
    """Return name -> address of the workers there are."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {str(worker["name"]): address for address, worker in workers.items()}


def _compute(client: Any, meanwhile: Callable[[], object], tasks: int = 60, seconds: float = 0.1) -> None:
    """Compute as an ingestion does, results taken at once, while something happens; all of them are right."""
    from distributed import as_completed

    def square(number: int) -> int:  # nested: sent by value, workers cannot import tests
        import time

        time.sleep(seconds)
        return number * number

    futures = client.map(square, range(tasks), pure=False)
    results = []
    for future in as_completed(futures, loop=client.loop):
        results.append(future.result())
        future.release()
        if len(results) == 5:
            meanwhile()
    assert sorted(results) == [number * number for number in range(tasks)]


def _listening(*pids: int) -> set[str]:
    """Return the addresses at which processes listen."""
    sockets = [socket for pid in pids for socket in psutil.Process(pid).net_connections("inet")]
    return {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}


def test_tasks_run_in_jobs_with_the_workers_environment_and_nothing_is_left(
    slurm: Any, config: Callable[..., ClusterConfig], tmp_path: Path
) -> None:
    def environment(dask_worker: Any) -> dict[str, str | None]:
        import os
        import sys

        names = ("PYTHONSAFEPATH", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "SITE", "SLURM_JOB_NAME")
        seen = {name: os.environ.get(name) for name in names}
        seen |= {"safe": str(sys.flags.safe_path), "python": sys.executable}
        return seen | {"threads": str(dask_worker.state.nthreads)}

    before = dict(os.environ)
    with open_client(config(cores=2, prologue=["export SITE=here", "export OMP_NUM_THREADS=9"])) as client:
        client.wait_for_workers(2, timeout=60)
        seen = client.run(environment)
        jobs = slurm.jobs()
        assert {name for name, _, _ in jobs.values()} == {"gfm-worker"}
        assert len(jobs) == 2
        assert all(address.startswith("tcp://127.0.0.1:") for address in _workers(client).values())
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")
        # Scheduler, workers, nannies and their pages; the wildcard address would be seen here.
        listening = _listening(os.getpid(), *slurm.processes())
        cores = slurm.command("squeue", "--noheader", "--format=%C").split()
    expected = {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "SITE": "here"}
    for values in seen.values():
        assert values == expected | {
            "SLURM_JOB_NAME": "gfm-worker",
            "safe": "True",
            "threads": "1",
            "python": sys.executable,
        }
    assert cores == ["2", "2"]
    assert listening == {"127.0.0.1"}
    slurm.wait_for(lambda: not slurm.jobs() and not slurm.processes(), "the jobs to be gone")
    assert dict(os.environ) == before
    assert list((tmp_path / "logs").glob("gfm-worker-*.err"))


def _kill_the_worker(slurm: Any, job: str) -> None:
    os.kill(slurm.worker_pids(job)[0], signal.SIGKILL)


def _kill_all_of_the_job(slurm: Any, job: str) -> None:
    for pid in slurm.processes(job):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _cancel_the_job(slurm: Any, job: str) -> None:
    slurm.cancel(job)


def _set_the_node_down(slurm: Any, job: str) -> None:
    slurm.set_down(slurm.jobs()[job][2])


@pytest.mark.parametrize(
    ("harm", "per_job"),
    [(_kill_the_worker, 1), (_kill_all_of_the_job, 1), (_cancel_the_job, 2), (_set_the_node_down, 1)],
)
def test_what_is_lost_is_replaced_and_the_work_finishes(
    slurm: Any, config: Callable[..., ClusterConfig], harm: Callable[[Any, str], None], per_job: int
) -> None:
    with open_client(config(processes_per_job=per_job)) as client:
        client.wait_for_workers(2, timeout=60)
        before = _workers(client)
        _compute(client, lambda: harm(slurm, min(slurm.jobs(), key=int)))
        slurm.wait_for(
            lambda: len(_workers(client)) == 2 and _workers(client) != before, "as many workers again"
        )
        # Still jobs of the same names, and no more of them than before.
        assert _workers(client).keys() == before.keys()
        slurm.wait_for(lambda: len(slurm.jobs()) == 2 // per_job, "no more jobs than needed")


def test_a_task_that_kills_its_workers_ends_all_the_same(
    slurm: Any, config: Callable[..., ClusterConfig]
) -> None:
    from distributed import KilledWorker

    def die() -> None:
        import os

        os.kill(os.getpid(), 9)

    with open_client(config(workers=1, allowed_failures=1)) as client:
        future = client.submit(die, pure=False)
        with pytest.raises(KilledWorker, match="2 different workers"):
            future.result(timeout=60)
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3


_CLIENT = """
import sys, time
from gfm.runtime.cluster import ClusterConfig, open_client
if __name__ == "__main__":
    with open_client(ClusterConfig.model_validate_json(sys.argv[1])) as client:
        client.wait_for_workers(2, timeout=60)
        futures = client.map(time.sleep, [0.5] * 500, pure=False)
        print("ready", flush=True)
        client.gather(futures)
"""


# A killed client cannot cancel: its jobs end by themselves. An interrupted one does not leave it to them.
@pytest.mark.parametrize(("end", "death_timeout"), [(signal.SIGKILL, 4), (signal.SIGINT, 600)])
def test_jobs_of_a_client_that_is_killed_or_interrupted_end(
    slurm: Any, config: Callable[..., ClusterConfig], end: signal.Signals, death_timeout: int
) -> None:
    arguments = [sys.executable, "-c", _CLIENT, config(death_timeout=death_timeout).model_dump_json()]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(slurm.jobs()) == 2
        process.send_signal(end)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    slurm.wait_for(lambda: not slurm.jobs() and not slurm.processes(), "the jobs to be gone", 30)


def test_the_number_of_workers_follows_the_work_within_its_range(
    slurm: Any, config: Callable[..., ClusterConfig]
) -> None:
    with open_client(config(minimum=1, workers=3, host=None, interface="lo")) as client:
        assert len(slurm.jobs()) == 1
        _compute(client, lambda: slurm.wait_for(lambda: len(_workers(client)) == 3, "three workers"), tasks=150)
        slurm.wait_for(lambda: len(slurm.jobs()) == 1, "two workers to be given back", 60)
        assert len(_workers(client)) == 1


def test_workers_retire_before_their_time_and_others_take_their_place(
    slurm: Any, config: Callable[..., ClusterConfig]
) -> None:
    with open_client(config(lifetime=6, allowed_failures=1)) as client:
        client.wait_for_workers(2, timeout=60)
        first = set(slurm.jobs())
        # A retired worker is not one that a task killed: that would end some of them here.
        _compute(client, lambda: None, tasks=70, seconds=0.2)
        assert not first & set(slurm.jobs())
        slurm.wait_for(lambda: len(slurm.jobs()) == 2, "as many jobs again")


def test_a_refused_job_is_said_with_the_answer_of_the_batch_system(
    slurm: Any, config: Callable[..., ClusterConfig]
) -> None:
    with (
        pytest.raises(ResourceError, match=r"sbatch answered: .*invalid partition.*nowhere"),
        open_client(config(queue="nowhere")),
    ):
        pytest.fail("there is no such partition")
    assert slurm.jobs() == {}


def test_jobs_that_end_at_once_are_said_with_their_last_words(
    slurm: Any, config: Callable[..., ClusterConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "LONGEST_PAUSE", 0.5)
    with (
        pytest.raises(
            ResourceError, match=r"job .* ended before its worker came; its last lines: .*no such module"
        ),
        open_client(config(prologue=["echo no such module >&2", "exit 3"])),
    ):
        pytest.fail("no worker can come")
    slurm.wait_for(lambda: not slurm.jobs(), "the queue to be empty")


def test_a_start_that_takes_too_long_says_what_the_queue_says(
    slurm: Any, config: Callable[..., ClusterConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    for node in slurm.nodes:
        slurm.set_down(node)
    with (
        pytest.raises(
            ResourceError, match=r"no worker after 4 s: squeue says of 2 jobs: 2 PENDING .*DOWN.*start_timeout"
        ),
        open_client(config(start_timeout=4), tell=told.append),
    ):
        pytest.fail("no node is up")
    assert slurm.jobs() == {}
    assert any("waiting for the first worker" in line for line in told)


def test_private_slurms_live_side_by_side_and_leave_nothing(slurm: Any) -> None:
    with type(slurm)(nodes=1) as other:
        (other.directory / "job.sh").write_text("#!/bin/bash\nsleep 1000\n")
        other.command("sbatch", "--output=/dev/null", str(other.directory / "job.sh"))
        other.wait_for(lambda: "sleep 1000" in other.processes("1").values(), "the job to run")
        assert slurm.jobs() == {}
        assert slurm.processes() == {}
        assert [node for _, _, node in other.jobs().values()] == ["node1"]
    assert other.processes() == {}
    assert not other.directory.exists()
