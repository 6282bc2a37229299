"""The Dask client: loopback only, workers that compute on one thread, nothing left behind; batch scripts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from gfm.errors import ConfigError, ResourceError
from gfm.runtime.cluster import ClusterConfig, batch_script, open_client
from gfm.runtime.config import Config, dump_config, parse_config


class _Job(Config):
    cluster: ClusterConfig = ClusterConfig()


def _batch(**changes: Any) -> ClusterConfig:
    """A configuration of a batch system; keywords replace settings."""
    return ClusterConfig.model_validate(
        {"kind": "slurm", "workers": 4, "memory": "2GiB", "interface": "lo", "log_directory": "/logs"} | changes
    )


def test_a_kind_alone_is_a_configuration() -> None:
    assert parse_config(_Job, {"cluster": "local"}, "job").cluster == ClusterConfig()
    assert parse_config(_Job, {"cluster": {"kind": "local", "workers": 3}}, "job").cluster.workers == 3


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("slurmy", "cluster.kind: .*htcondor.*Did you mean 'slurm'"),
        ({"worker": 2}, "Did you mean 'workers'"),
        ({"workers": 0}, "workers"),
        ({"minimum": 3, "workers": 2}, "minimum is 3, more than the 2 workers"),
        ({"walltime": "01:00:00", "queue": "long"}, "queue, walltime: of no use with kind local"),
        ({"kind": "slurm", "interface": "ib0"}, r"slurm needs workers, memory \(of one worker\)"),
    ],
)
def test_what_is_no_cluster_is_refused(cluster: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(_Job, {"cluster": cluster}, "job")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 5, "processes_per_job": 2}, "workers come 2 a job"),
        ({"minimum": 1, "processes_per_job": 2}, "workers come 2 a job"),
        ({"processes_per_job": 4, "cores": 2}, "cores: 2 a job are fewer than its 4"),
        ({"host": "127.0.0.1"}, "host and interface say the same"),
        ({"walltime": "1:00"}, "expected hours:minutes:seconds"),
        ({"walltime": "00:10:00", "lifetime": 590}, r"lifetime: workers of 590 \+- 59 s do not retire before"),
        ({"processes": False}, "processes: of no use with kind slurm"),
        ({"kind": "htcondor"}, "htcondor needs disk"),
        ({"kind": "htcondor", "disk": "1GiB", "queue": "long"}, "queue: of no use with kind htcondor"),
        ({"kind": "htcondor", "disk": "1GiB", "directives": ["+Project"]}, "directives: .*name = value"),
    ],
)
def test_what_a_batch_system_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _batch(**changes)


def test_what_is_written_of_a_configuration_is_read_as_the_same() -> None:
    for config in (
        ClusterConfig(),
        _batch(walltime="2-00:00:00", directives=["--qos=long"], prologue=["true"]),
    ):
        path = {"cluster": config.model_dump(mode="json")}
        assert parse_config(_Job, path, "job").cluster == config
        assert "kind" in dump_config(config)
    # YAML reads an unquoted 10:00:00 as a number to base 60.
    assert _batch(walltime=36000) == _batch(walltime="10:00:00")


def test_the_batch_systems_library_does_not_take_ctrl_c() -> None:
    code = "import signal, gfm.runtime.jobqueue; print(signal.getsignal(signal.SIGINT).__name__)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "default_int_handler"


def test_importing_the_cluster_imports_no_dask() -> None:
    code = "import sys, gfm.runtime.cluster; print('dask' in sys.modules or 'dask_jobqueue' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_there_is_no_batch_script_on_one_machine() -> None:
    assert batch_script(ClusterConfig()) is None


def test_the_batch_script_of_slurm(tmp_path: Path) -> None:
    config = _batch(
        workers=8,
        processes_per_job=2,
        cores=4,
        queue="long",
        account="materials",
        walltime="1-00:00:00",
        directives=["--constraint=rome"],
        prologue=["module load gcc"],
        log_directory=tmp_path / "logs",
        local_directory="/scratch",
    )
    text = batch_script(config)
    assert text is not None
    lines = [line for line in text.splitlines() if line]
    assert lines[:-1] == [
        "#!/usr/bin/env bash",
        "#SBATCH -J gfm-worker",
        f"#SBATCH -e {tmp_path}/logs/gfm-worker-%J.err",
        f"#SBATCH -o {tmp_path}/logs/gfm-worker-%J.out",
        "#SBATCH -p long",
        "#SBATCH -A materials",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=4G",
        "#SBATCH -t 24:00:00",
        "#SBATCH --no-requeue",
        "#SBATCH --constraint=rome",
        "module load gcc",
        "export PYTHONSAFEPATH=1",
        "export OMP_NUM_THREADS=1",
        "export OPENBLAS_NUM_THREADS=1",
        "export MKL_NUM_THREADS=1",
        "export NUMBA_NUM_THREADS=1",
    ]
    command = lines[-1]
    assert command.startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://SCHEDULER:PORT ")
    for words in (
        "--name gfm-worker-0 --nthreads 1 --memory-limit 2.00GiB --nworkers 2 --nanny",
        "--death-timeout 60",
        "--local-directory /scratch",
        "--no-dashboard --dashboard-address 127.0.0.1:0",
        f"--lifetime {24 * 3600 - 300}s --lifetime-stagger 120s --no-lifetime-restart",
        "--interface lo",
    ):
        assert f" {words}" in command
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "pbs",
            ["#PBS -q long", "#PBS -A us", "#PBS -l select=1:ncpus=1:mem=2048MB", "#PBS -l walltime=02:30:00"],
        ),
        ("moab", ["#PBS -q long", "#PBS -A us", "#PBS -l walltime=02:30:00"]),
        ("sge", ["#$ -q long", "#$ -P us", "#$ -l h_rt=02:30:00"]),
        ("lsf", ["#BSUB -q long", '#BSUB -P "us"', "#BSUB -n 1", "#BSUB -W 02:30"]),
        ("oar", ["#OAR -q long", "#OAR --project us", "#OAR -l /nodes=1/core=1,walltime=02:30:00"]),
    ],
)
def test_each_batch_system_is_spoken_to_in_its_own_words(kind: str, expected: list[str]) -> None:
    text = batch_script(_batch(kind=kind, queue="long", account="us", walltime="02:30:00"))
    assert text is not None
    assert set(expected) <= set(text.splitlines())
    assert "export PYTHONSAFEPATH=1\n" in text
    assert " --lifetime 8700s " in text


def test_the_batch_script_of_htcondor() -> None:
    changes = {"disk": "1GiB", "directives": ["accounting_group = us"], "prologue": ["module load gcc"]}
    text = batch_script(_batch(kind="htcondor", **changes))
    assert text is not None
    assert {"MY.DaskWorkerMemory = 2147483648", "accounting_group = us"} <= set(text.splitlines())
    assert "module load gcc; export PYTHONSAFEPATH=1; " in text
    assert "--lifetime" not in text


@pytest.mark.parametrize(
    ("interface", "message"),
    [(None, r"cluster.interface is not given.* lo \(127.0.0.1\)"), ("loo", "no 'loo'.* Did you mean 'lo'")],
)
def test_nothing_listens_everywhere_and_interfaces_are_named(interface: str | None, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        batch_script(_batch(interface=interface))
    with pytest.raises(ResourceError, match=message), open_client(_batch(interface=interface)):
        pytest.fail("it must not start")


def test_a_missing_batch_system_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = _batch(kind="oar", log_directory=tmp_path)
    with pytest.raises(ResourceError, match="there is no program oarsub"), open_client(config):
        pytest.fail("there is no oarsub")


_QSUB = """#!/bin/sh
cp "$1" "{folder}/$$.sh"
setsid sh "{folder}/$$.sh" >"{folder}/$$.log" 2>&1 &
echo "$!.server"
"""


@pytest.mark.slow
def test_a_batch_system_that_cannot_be_asked_has_its_lost_jobs_replaced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gfm.runtime import keeper

    monkeypatch.setattr(keeper, "LOST_SECONDS", 2.0)
    # Commands of PBS that start and end processes of this machine, each job a session of its own.
    for name, text in {
        "qsub": _QSUB.format(folder=tmp_path),
        "qdel": '#!/bin/sh\nkill -TERM -- "-$1"\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    config = _batch(kind="pbs", workers=1, interface=None, host="127.0.0.1", log_directory=tmp_path / "logs")
    sessions = []
    with open_client(config) as client:
        for _ in range(2):
            pid = client.submit(os.getpid, pure=False).result(timeout=90)
            sessions.append(os.getsid(pid))
            if len(sessions) == 1:
                os.killpg(sessions[0], signal.SIGKILL)
    assert len(set(sessions)) == 2
    deadline = time.monotonic() + 30
    while any(_runs(session) for session in sessions) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(session) for session in sessions)


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_threads_of_this_process_compute_and_the_dashboard_is_on_loopback() -> None:
    with open_client(ClusterConfig(processes=False, workers=2)) as client:
        assert client.submit(os.getpid).result() == os.getpid()
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2
    assert client.status == "closed"


def test_the_number_of_workers_follows_the_work() -> None:
    with open_client(ClusterConfig(processes=False, minimum=1, workers=3)) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
        futures = client.map(time.sleep, [0.1] * 150, pure=False)
        client.wait_for_workers(3, timeout=60)
        client.gather(futures)
        assert len(client.scheduler_info(n_workers=-1)["workers"]) <= 3


@pytest.mark.slow
def test_a_killed_worker_process_is_replaced() -> None:
    def die() -> None:
        import os

        os.kill(os.getpid(), 9)

    from distributed import KilledWorker

    with open_client(ClusterConfig(workers=1, allowed_failures=1, dashboard=None)) as client:
        with pytest.raises(KilledWorker, match="2 different workers"):
            client.submit(die, pure=False).result(timeout=60)
        assert client.submit(os.getpid).result(timeout=60) != os.getpid()


@pytest.mark.slow
def test_worker_processes_have_their_environment_and_the_client_keeps_its_own() -> None:
    def environment() -> dict[str, str | None]:  # nested: sent by value, workers cannot import tests
        import os
        import sys

        names = ("PYTHONSAFEPATH", "OMP_NUM_THREADS")
        return {name: os.environ.get(name) for name in names} | {"safe": str(sys.flags.safe_path)}

    before = dict(os.environ)
    with open_client(ClusterConfig(workers=1, dashboard=None)) as client:
        seen = client.submit(environment).result()
        address = next(iter(client.scheduler_info()["workers"]))
        pid = client.submit(os.getpid).result()
    assert seen == {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "safe": "True"}
    assert address.startswith("tcp://127.0.0.1:")
    assert pid != os.getpid()
    assert dict(os.environ) == before
