"""One file from one server over as many HTTP connections as it takes, each going on where the last broke off.

What came lies in ``NAME.part``; ``NAME.part.note`` says of which version of the file it is. The checksum is
computed while bytes are written. Nothing is taken over an unencrypted connection.

Source: RFC 9110, sections 13.1.5 (If-Range), 14 (Range) and 15.5.17 (416).
"""

import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gfm.errors import DataError, ResourceError
from ingest.archives import RemoteFile
from ingest.disk import check_space
from store.integrity import replacing

__all__ = ["Listener", "Network", "RefusedByServer", "Transfer", "hash_of", "note_of", "part_of"]

_BLOCK = 1 << 20
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_PAGES = ("text/html", "application/xhtml")
_PAGE_STARTS = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class Network:
    """How patient a download is.

    Attributes:
        retries: How often it is tried again without a new byte having come.
        timeout: Seconds without an answer or a byte after which a connection counts as broken.
        pause: Seconds before the first of these; doubled each time, at most a minute.
    """

    retries: int = 8
    timeout: float = 60.0
    pause: float = 1.0


class Listener:
    """Is told how a download goes; does nothing."""

    def begun(self, name: str, done: int, total: int | None) -> None:
        """Bytes that are there and bytes there will be (None: unknown); told again whenever it starts anew."""

    def advanced(self, name: str, done: int) -> None:
        """So many bytes are there now."""

    def said(self, text: str) -> None:
        """Something a person may want to know."""


class RefusedByServer(DataError):
    """A server does not give the file, or gives another one; asking it again would not help."""


class _BrokenError(Exception):
    """The connection or the server failed in a way that may pass; ``wait`` is what the server asks for, s."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Transfer:
    """The transfer of one file; `run` brings it to ``NAME.part``, complete, and returns its md5."""

    def __init__(self, file: RemoteFile, url: str, target: Path, network: Network, listener: Listener) -> None:
        """Take up what an earlier transfer left beside ``target``."""
        self.file, self.url, self.target, self.network, self.listener = file, url, target, network, listener
        self.part = part_of(target)
        self.local = httpx.URL(url).host in _LOOPBACK
        self.done = self.part.stat().st_size if self.part.exists() else 0
        self.furthest = self.done  # an attempt is fruitless unless it comes further than this
        self.restarts = 0
        self.total = file.size
        self.hash = hash_of(self.part, file.name, file.nbytes, listener) if self.done else _md5()

    def run(self) -> str:
        """Bring the file.

        Raises:
            RefusedByServer: The server does not give it.
            ResourceError: The server cannot be reached, or there is no room on the disk.
        """
        fruitless = 0
        timeout = httpx.Timeout(self.network.timeout)
        with httpx.Client(timeout=timeout, headers={"Accept-Encoding": "identity"}) as client:
            while self.total is None or self.done != self.total:
                broken, wait = self._try(client)
                if broken is None:
                    break
                fruitless = 0 if self.done > self.furthest else fruitless + 1
                self.furthest = max(self.furthest, self.done)
                if max(fruitless, self.restarts) > self.network.retries:
                    raise ResourceError(
                        f"{self.url}: {broken}; given up after {fruitless} attempts without a new byte and "
                        f"{self.restarts} from the beginning. {self.done:,} bytes are kept in {self.part}: the "
                        "same command goes on from there"
                    )
                wait = min(60.0, max(wait, self.network.pause * 2.0 ** max(fruitless - 1, 0)))
                self.listener.said(f"{self.file.name}: {broken}; going on in {wait:.0f} s")
                time.sleep(wait)
        return str(self.hash.hexdigest())

    def _try(self, client: httpx.Client) -> tuple[str | None, float]:
        """Ask once; return what broke, None if nothing did, and how long the server asks to wait, s."""
        try:
            self._ask(client)
        except _BrokenError as error:
            return str(error), error.wait
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise RefusedByServer(f"{self.url}: {error}") from error
        except (httpx.TransportError, httpx.StreamError) as error:
            return f"{type(error).__name__} {error}".strip(), 0.0
        return None, 0.0

    def _ask(self, client: httpx.Client) -> None:
        """Ask once for what is missing, and write what comes."""
        response = self._open(client)
        try:
            if response.status_code == 416:
                self._not_satisfiable(response)
            elif response.status_code in _TRY_AGAIN:
                raise _BrokenError(f"the server answers {response.status_code}", _retry_after(response))
            elif response.status_code not in (200, 206):
                raise RefusedByServer(_status_text(self.url, response))
            elif response.headers.get("Content-Type", "").startswith(_PAGES):
                raise RefusedByServer(_page_text(self.url))
            else:
                self._take(response)
        finally:
            response.close()
        if self.total is not None and self.done < self.total:
            raise _BrokenError(f"the connection ended after {self.done:,} of {self.total:,} bytes")

    def _open(self, client: httpx.Client) -> httpx.Response:
        """Send the request, and follow redirects to places that are as safe."""
        headers = {}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if validator := _version_of(self.target):
                headers["If-Range"] = validator
        request = client.build_request("GET", self.url, headers=headers)
        for _ in range(10):
            url = request.url
            if url.scheme != "https" and not (self.local and url.host in _LOOPBACK):
                raise RefusedByServer(f"{self.url} leads to {url}, which is not encrypted; nothing is taken")
            response = client.send(request, stream=True)
            if response.status_code not in _REDIRECTS or response.next_request is None:
                return response
            response.close()
            request = response.next_request
        raise RefusedByServer(f"{self.url}: more than 10 redirects; look at the address in a browser")

    def _not_satisfiable(self, response: httpx.Response) -> None:
        """Take a 416: all is there, or what is there is no part of the file that the server has now."""
        match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != self.done:
            self._restart(None)
            raise _BrokenError("what came is no part of the file that the server has; starting anew")
        self._check_total(self.done)

    def _take(self, response: httpx.Response) -> None:
        """Write what comes, behind what is there or from the beginning."""
        anew = response.status_code == 200
        if anew:
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        else:
            stated = response.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", stated)
            version, before = _validator(response), _version_of(self.target)
            changed = version is not None and before is not None and version != before
            if match is None or int(match[1]) != self.done or changed:
                self._restart(None)
                raise _BrokenError(f"the server answers with another range or version ({stated})")
            total = int(match[2]) if match[2] != "*" else None
        self._check_total(total)  # before what came is given up for something else
        self._write(response, anew)

    def _write(self, response: httpx.Response, anew: bool) -> None:
        """Append what comes; without a buffer of our own, so that nothing is lost with the process."""
        blocks = response.iter_raw()  # of a stated size they would be gathered, and lost when it breaks
        first = next(blocks, b"")
        if anew:
            if first[:256].lstrip().lower().startswith(_PAGE_STARTS):
                raise RefusedByServer(_page_text(self.url))
            if self.done:
                self.listener.said(f"{self.file.name}: the server starts anew (changed file, or no ranges)")
            self._restart(_validator(response))
        self.listener.begun(self.file.name, self.done, self.total)
        with self.part.open("ab", buffering=0) as stream:
            while first:
                if self.total is not None and self.done + len(first) > self.total:
                    stream.close()
                    self._restart(None)
                    raise RefusedByServer(
                        f"{self.url}: more bytes come than the {self.total:,} that there should be"
                    )
                view = memoryview(first)
                while view:
                    view = view[stream.write(view) :]
                self.hash.update(first)
                self.done += len(first)
                self.listener.advanced(self.file.name, self.done)
                first = next(blocks, b"")

    def _restart(self, validator: str | None) -> None:
        """Forget what came; note the version that comes now."""
        self.restarts += self.done > 0
        self.part.unlink(missing_ok=True)
        self.done, self.furthest, self.hash = 0, 0, _md5()
        with replacing(note_of(self.target)) as temporary:
            temporary.write_text(json.dumps({"url": self.url, "validator": validator}) + "\n")

    def _check_total(self, total: int | None) -> None:
        """Compare the size with the published one, and with the disk."""
        if total is None:
            return
        if self.file.size is not None and total != self.file.size:
            raise RefusedByServer(
                f"{self.url}: the server has {total:,} bytes, but the published file has {self.file.size:,}. "
                "The publisher may have replaced it; look at the DOI (gfm download --list)"
            )
        self.total = total
        check_space(self.target.parent, total - self.done)


def part_of(target: Path) -> Path:
    """Return where the bytes of an unfinished file are."""
    return target.with_name(f"{target.name}.part")


def note_of(target: Path) -> Path:
    """Return where it is noted of which version of a file its part is."""
    return target.with_name(f"{target.name}.part.note")


def hash_of(path: Path, name: str, total: int, listener: Listener) -> Any:
    """Return the md5 object of what is in a file; the listener hears of it as of a download."""
    found, done = _md5(), 0
    listener.begun(name, 0, total)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
            done += len(block)
            listener.advanced(name, done)
    return found


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _version_of(target: Path) -> str | None:
    """Return the validator of the version that a part is of; None where it is unknown."""
    try:
        note = json.loads(note_of(target).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    validator = note.get("validator") if isinstance(note, dict) else None
    return validator if isinstance(validator, str) else None


def _validator(response: httpx.Response) -> str | None:
    """Return what If-Range compares: a strong ETag, else the date; weak ETags do not promise the same bytes."""
    tag: str | None = response.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    date: str | None = response.headers.get("Last-Modified")
    return date


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _status_text(url: str, response: httpx.Response) -> str:
    code = response.status_code
    if code in (404, 410):
        return f"{url}: not there ({code}); the file may have moved, look at the DOI (gfm download --list)"
    why = "the server wants a browser or a login" if code in (202, 401, 403) else "no answer with a file"
    return (
        f"{url}: {code} {response.reason_phrase}: {why}. Download the file by hand into the same folder, under "
        "the same name; the same command then checks it"
    )


def _page_text(url: str) -> str:
    return (
        f"{url}: a web page came instead of the file (a login, a notice or an error). Open the address in a "
        "browser and download the file by hand into the same folder; the same command then checks it"
    )
