"""A private Slurm of several nodes on one machine, in one directory: real programs, loopback only.

Its own munged, slurmctld and one slurmd per node run as ordinary children on free ports, so several such
clusters live side by side, as root or not. All that it started, job steps too, is ended by process id.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["PrivateSlurm", "Starting"]

_CONFIGURATION = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
TmpFS={directory}/tmp/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={directory}/completed.txt
MpiDefault=pmi2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=200000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,CR_LLN
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout=20
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Starting(AssertionError):
    """Something that was waited for did not come; the text has the logs."""


class PrivateSlurm:
    """A context manager: the cluster runs inside of it. ``environment`` makes Slurm's commands use it."""

    def __init__(self, directory: Path | None = None, *, nodes: int = 3, cores: int = 4) -> None:
        """Name the directory (default: a new one, removed at the end); nodes are ``node1`` and so on."""
        self._own = directory is None
        # Sockets have short paths at most; munged wants a directory that only its user may change.
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-")) if directory is None else directory
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._cores = cores
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """The variables of this process, changed so that Slurm's commands speak to this cluster."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
        path = f"{kept.get('PATH', '/usr/bin')}{os.pathsep}/usr/sbin"
        return {**kept, "PATH": path, "SLURM_CONF": str(self._conf)}

    def __enter__(self) -> Self:
        try:
            self._write()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def command(self, *words: str) -> str:
        """Run a command of Slurm and return what it printed."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Starting(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr}")
        return done.stdout

    def jobs(self) -> dict[str, tuple[str, str, str]]:
        """Return the jobs in the queue: id -> (name, state, node)."""
        lines = self.command("squeue", "--noheader", "--format=%i|%j|%T|%N").splitlines()
        parts = [line.split("|") for line in lines]
        return {part[0]: (part[1], part[2], part[3]) for part in parts}

    def cancel(self, job: str) -> None:
        """Cancel a job."""
        self.command("scancel", job)

    def set_down(self, node: str) -> None:
        """Let the controller believe that a node is gone: its jobs end at once."""
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def resume(self, node: str) -> None:
        """Bring a node back that was set down."""
        self.command("scontrol", "update", f"nodename={node}", "state=resume")
        self.wait_for(lambda: self._states().get(node) in {"idle", "mixed", "allocated"}, f"{node} to be back")

    def processes(self, job: str | None = None) -> dict[int, str]:
        """Return the processes of a job (by default of all jobs): process id -> command line."""
        mine = f"SLURM_CONF={self._conf}".encode()
        wanted = b"SLURM_JOB_ID=" + job.encode() if job else b"SLURM_JOB_ID="
        return {
            pid: command
            for pid, command, variables in _processes()
            if mine in variables
            and any(v == wanted or (job is None and v.startswith(wanted)) for v in variables)
        }

    def worker_pids(self, job: str) -> list[int]:
        """Return the process ids of a job's Dask workers: those that compute, not their nannies."""
        return [pid for pid, command in self.processes(job).items() if "multiprocessing.spawn" in command]

    def clean(self) -> None:
        """Cancel all jobs, wait until they are gone, and bring all nodes back."""
        self.command("scancel", "--user", getpass.getuser())
        for node, state in self._states().items():
            if state not in {"idle", "mixed", "allocated", "completing"}:
                self.resume(node)
        self.wait_for(lambda: not self.jobs(), "the queue to be empty")

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        """Wait until a condition holds.

        Raises:
            Starting: It does not within these seconds; the text has the ends of all logs.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise Starting(f"waited {seconds:g} s for {what}\n{self._logs()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End all that this cluster started: jobs first, then the daemons."""
        mine = f"SLURM_CONF={self._conf}".encode()
        for signal_number, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
            deadline = time.monotonic() + seconds
            while True:
                daemons = {daemon.pid for daemon in self._daemons if daemon.poll() is None}
                # Job steps are nobody's children: they are known by the configuration they were started with.
                left = {pid for pid, _, variables in _processes() if mine in variables} | daemons
                for pid in left - {os.getpid()}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal_number)
                if not left or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        if self._own:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _conf(self) -> Path:
        return self.directory / "slurm.conf"

    def _write(self) -> None:
        self.directory.chmod(0o755)
        for folder in ("state", "spool", *(f"tmp/{node}" for node in self.nodes)):
            (self.directory / folder).mkdir(parents=True)
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        port, *ports = _free_ports(1 + len(self.nodes))
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={number} CPUs={self._cores} "
            "RealMemory=8000 State=UNKNOWN"
            for node, number in zip(self.nodes, ports, strict=True)
        ]
        names = {"host": host, "port": port, "user": getpass.getuser(), "nodes": "\n".join(nodes)}
        self._conf.write_text(_CONFIGURATION.format(directory=self.directory, **names))

    def _start(self) -> None:
        munge = [f"--{name}={self.directory / 'munge'}.{name.split('-')[0]}" for name in ("socket", "pid-file")]
        munge += [f"--key-file={self.directory}/munge.key", f"--seed-file={self.directory}/munge.seed"]
        munge += [f"--log-file={self.directory}/munged.log", "--foreground", "--force", "--num-threads=2"]
        self._spawn("munged", *munge)
        self.wait_for((self.directory / "munge.socket").exists, "munged", 20)
        self._spawn("slurmctld", "-D", "-f", str(self._conf))
        for node in self.nodes:
            self._spawn("slurmd", "-D", "-N", node, "-f", str(self._conf))
        self.wait_for(lambda: set(self._states().values()) == {"idle"}, "all nodes to be idle", 60)

    def _spawn(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=self.environment["PATH"])
        if path is None:
            raise Starting(f"{program} is not installed")
        log = self.directory / f"{program}-{len(self._daemons)}.log"
        with log.open("wb") as file:
            # A session of its own: the terminal's Ctrl-C is for the tests, not for what they stop themselves.
            daemon = subprocess.Popen(
                [path, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._daemons.append(daemon)

    def _states(self) -> Mapping[str, str]:
        ended = [daemon for daemon in self._daemons if daemon.poll() is not None]
        if ended:
            raise Starting(f"{ended[0].args} ended with code {ended[0].returncode}\n{self._logs()}")
        try:
            lines = self.command("sinfo", "--noheader", "--Node", "--format=%N|%T").splitlines()
        except Starting:
            return {}  # the controller is not there yet
        return dict(line.rstrip("*~#!%$@^-").split("|") for line in lines)

    def _logs(self) -> str:
        texts = [
            f"{log.name}:\n{log.read_text(errors='replace')[-1500:]}" for log in self.directory.glob("*.log")
        ]
        with contextlib.suppress(Starting, subprocess.TimeoutExpired):
            texts.append(self.command("squeue") + self.command("sinfo", "--Node", "--long"))
        return "\n".join(texts)


def _processes() -> Iterator[tuple[int, str, set[bytes]]]:
    """Yield process id, command line and variables at start of every process that this user may look at."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is somebody else's
                variables = set((folder / "environ").read_bytes().split(b"\0"))
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command:  # a zombie has none
                    yield int(folder.name), command.strip(), variables


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
