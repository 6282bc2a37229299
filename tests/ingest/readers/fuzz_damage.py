"""Damage done to files on purpose, the process that reads them, and what may come out of it."""

import json
import os
import selectors
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_MEMORY = 1 << 30  # address space a reader may add
_GROWTH = 3 << 18  # KiB of memory it may really use
_SECONDS = 30.0  # a watchdog, not a measure: one small file takes milliseconds
_ROOT = Path(__file__).resolve().parents[3]


class Operation(NamedTuple):
    """One change of a file; places are fractions of its size, so that they fit any file.

    Attributes:
        name: ``cut``, ``flip``, ``overwrite``, ``delete``, ``repeat``, ``swap``, ``insert``.
        place: Where.
        size: Bytes concerned; the bit for ``flip``.
        other: Where else.
        content: Bytes that are written.
    """

    name: str
    place: float
    size: int = 1
    other: float = 0.0
    content: bytes = b""


def damage(data: bytes, operations: Sequence[Operation]) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the damaged bytes, and which stretches of the original are not what or where they were.

    Of several operations all but the last keep every byte in its place.
    """
    touched = []
    for name, place, size, other, content in operations:
        at = min(int(place * len(data)), len(data) - 1) if data else 0
        size = max(size, 1)
        end = min(at + size, len(data))
        if name == "cut":
            touched.append((at, len(data)))
            data = data[:at]
        elif name == "flip":
            touched.append((at, at + 1))
            data = data[:at] + bytes([data[at] ^ (1 << size % 8)]) + data[at + 1 :] if data else data
        elif name == "overwrite":
            end = min(at + len(content), len(data))
            touched.append((at, end))
            data = data[:at] + content[: end - at] + data[end:]
        elif name == "delete":
            touched.append((at, end))
            data = data[:at] + data[end:]
        elif name == "repeat":
            goal = int(other * len(data))
            touched += [(goal, goal), (at, at), (end, end)]
            data = data[:goal] + data[at:end] + data[goal:]
        elif name == "insert":
            touched.append((at, at))
            data = data[:at] + content + data[at:]
        elif name == "swap":
            goal = int(other * len(data))
            first, second = min(at, goal), max(at, goal)
            size = min(size, second - first, len(data) - second)
            touched += [(first, first + size), (second, second + size)]
            one, two = data[first : first + size], data[second : second + size]
            data = data[:first] + two + data[first + size : second] + one + data[second + size :]
    return data, touched


class Crashed(Exception):
    """The process that reads died or hung; the text says how."""


class Worker:
    """A process that reads files; started when it is needed, and again where it died."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._base = 0
        self.jobs = 0

    def read(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return what comes of a job.

        Raises:
            Crashed: The process died, or did not answer in time.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        self.jobs += 1
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:  # its answer, which is none, says more
            os.write(2, b"the reading process is gone\n")
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if waiting.select(_SECONDS) else b"late"
        if not line.endswith(b"\n"):
            self.stop()
            raise Crashed("no answer in time" if line == b"late" else f"died with {process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        self._base = self._base or answer["peak"]
        if answer["peak"] > self._base + _GROWTH:
            self.stop()
            raise Crashed(f"used {(answer['peak'] - self._base) >> 10} MiB")
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(Path(__file__).with_name("fuzz_worker.py")), str(_MEMORY)]
        with (self._folder / "stderr").open("ab") as errors:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=self._folder,
                env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self._base = 0
        return self._process

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        try:
            self._process.wait(0.2 if self._process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None


class Bench:
    """A layout's valid file, what is read of it, and a worker to read damaged copies."""

    def __init__(self, family: Any, folder: Path, worker: Worker) -> None:
        self.family = family
        self._folder = folder
        self._worker = worker
        self._number = 0
        good = self.read(family.data)
        assert not good["rejects"] + good["errors"], good
        assert "escaped" not in good, good["escaped"]
        self.good = {key: (group, digest) for key, group, digest, _ in good["structures"]}
        self.spans: dict[str, list[tuple[int, int]]] = {
            key: next((place for end, place in family.spans.items() if source.endswith(end)), [])
            for key, _, _, source in good["structures"]
        }
        assert not family.spans or all(self.spans.values())

    def read(self, data: bytes) -> dict[str, Any]:
        """Return what a reader makes of the files with the target's bytes replaced."""
        self._number += 1
        top = self._folder / str(self._number)
        folder = top / "files"
        folder.mkdir(parents=True)
        for name, content in (self.family.files | {self.family.target: data}).items():
            (folder / name).write_bytes(content)
        job = {
            "reader": self.family.reader,
            "options": self.family.options,
            "path": str(folder / (self.family.path or self.family.target)),
            "part_bytes": self.family.part_bytes,
            "scratch": str(top / "scratch") if self.family.scratch else None,
        }
        try:
            return self._worker.read(job)
        finally:
            outside = [path for path in top.iterdir() if path.name not in ("files", "scratch")]
            shutil.rmtree(top)
            assert not outside, f"written outside of the scratch folder: {outside}"

    def verdict(self, answer: dict[str, Any], touched: list[tuple[int, int]], moves: int) -> str:
        """Return what is wrong with an answer, or an empty text.

        Args:
            answer: What was read of the damaged file.
            touched: Stretches of the original that were touched.
            moves: How many operations moved bytes.
        """
        if "escaped" in answer:
            return f"escaped: {answer['escaped']}"
        found = [(key, group, digest) for key, group, digest, _ in answer["structures"]]
        told = bool(answer["rejects"] or answer["errors"])
        changed = [entry for entry in found if self.good.get(entry[0]) != entry[1:]]
        hit = {key for key, spans in self.spans.items() if _overlap(spans, touched)}
        lost = self.good.keys() - hit - {key for key, *_ in found}
        # A name that was damaged is another one: its records are not lost.
        if lost and not told and len(found) < len(self.good) - len(hit):
            return f"{len(lost)} untouched records vanished, uncounted"
        family = self.family.kind
        if family == "packed":
            # What the end of a stream lacks was never compared with its sum.
            cut = any(reason == "truncated-file" for _, reason, _ in answer["rejects"])
            return f"{len(changed)} wrong structures" if changed and not cut else ""
        if family == "sequence":  # a line that is missing moves all that follow, and that is told
            return f"{len(changed)} wrong, untold" if len(changed) > len(hit) + moves and not told else ""
        if family == "text":
            return f"{len(changed)} wrong of {len(hit)} touched" if len(changed) > len(hit) + moves else ""
        if moves or not self._inside(touched):
            return ""
        wrong = [entry for entry in changed if entry[0] in self.good.keys() - hit]
        if lost or wrong or len(changed) > len(hit):
            return f"{len(lost)} lost, {len(wrong)} wrong, of untouched records"
        return ""

    def silently_wrong(self, answer: dict[str, Any]) -> int:
        """Return how many structures differ from those of the undamaged file."""
        counts = Counter(
            self.good.get(key) == (group, digest) for key, group, digest, _ in answer["structures"]
        )
        return counts[False]

    def _inside(self, touched: list[tuple[int, int]]) -> bool:
        """Say whether all that was touched lies in records."""
        spans = [span for spans in self.spans.values() for span in spans]
        return all(any(a <= begin and end <= b for a, b in spans) for begin, end in touched)


def _overlap(spans: list[tuple[int, int]], touched: list[tuple[int, int]]) -> bool:
    """Say whether a record is touched; a byte beside it ends its last number or begins its first."""
    return any(begin <= b and a <= end for a, b in spans for begin, end in touched)
