"""Downloads from a server on this machine that breaks, lies, changes, hangs and recovers."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gfm.errors import ConfigError, CorruptDataError, DataError, ResourceError
from gfm.runtime.config import parse_config
from ingest.archives import ARCHIVES, Archive, RemoteFile, recipe_lines
from ingest.download import alone_in, download, unpack
from ingest.download_cli import download_app
from ingest.readers import READERS
from ingest.recipe import Recipe
from ingest.transfer import Listener, Network

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes
FAST = Network(retries=3, timeout=5.0, pause=0.01)
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class _Handler(BaseHTTPRequestHandler):
    """Does what the server's next step says; without one, what a good server does."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.asked.append({**self.headers, "path": self.path})
        step = self.server.steps.popleft() if self.server.steps else self.server.always
        step(self)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    """A file server on the loopback whose answers a test prescribes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, str]] = []
        self.steps: deque[Callable[[Any], None]] = deque()
        self.always: Callable[[Any], None] = serve()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


def serve(
    content: bytes = CONTENT,
    *,
    etag: str | None = '"one"',
    ranges: bool = True,
    cut: int | None = None,
    length: bool = True,
    headers: dict[str, str] | None = None,
) -> Callable[[Any], None]:
    """Answer as servers do: a range if it is asked for, of this version; ``cut`` ends it after some bytes."""

    def answer(handler: Any) -> None:
        asked = handler.headers.get("Range")
        if handler.headers.get("If-Range", etag) != etag or not ranges:
            asked = None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start and start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if length:
            handler.send_header("Content-Length", str(len(content) - start))
        if etag is not None:
            handler.send_header("ETag", etag)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(content[start:] if cut is None else content[start : start + cut])

    return answer


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[Any], None]:
    """Answer with a status."""

    def answer(handler: Any) -> None:
        handler.send_response(code)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang(handler: Any) -> None:
    """Send some bytes, then nothing."""
    serve(cut=300_000)(handler)
    handler.wfile.flush()
    handler.server.released.wait(20.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def remote(server: Server, content: bytes = CONTENT, **changes: Any) -> RemoteFile:
    values = {"name": "data.bin", "urls": (server.url,), "md5": (hashlib.md5(content).hexdigest(),)}
    return RemoteFile(**(values | {"size": len(content)} | changes))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Heard(Listener):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.started: list[int] = []

    def begun(self, name: str, done: int, total: int | None) -> None:
        self.started.append(done)

    def said(self, text: str) -> None:
        self.texts.append(text)


def test_a_file_comes_once_with_a_receipt(server: Server, tmp_path: Path) -> None:
    file = remote(server)
    assert download(file, tmp_path, FAST).read_bytes() == CONTENT
    assert names(tmp_path) == ["data.bin", "data.bin.receipt"]
    receipt = json.loads((tmp_path / "data.bin.receipt").read_text())
    assert receipt == {"bytes": len(CONTENT), "md5": file.md5[0], "url": server.url}
    download(file, tmp_path, FAST)
    download(file, tmp_path, FAST, verify=True)
    assert len(server.asked) == 1


def test_a_broken_connection_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.always = serve(cut=200_000)
    heard = Heard()
    assert download(remote(server), tmp_path, FAST, heard).read_bytes() == CONTENT
    # more breaks than retries: each brought something
    assert [asked.get("Range") for asked in server.asked] == [
        None, *(f"bytes={start}-" for start in range(200_000, 1_024_000, 200_000))
    ]  # fmt: skip
    assert {asked.get("If-Range") for asked in server.asked[1:]} == {'"one"'}
    assert heard.started == [asked * 200_000 for asked in range(6)]


def test_a_later_call_goes_on_and_checks_what_was_there(server: Server, tmp_path: Path) -> None:
    server.steps.append(serve(cut=500_000))
    server.always = status(503)
    with pytest.raises(ResourceError, match=r"503.*500,000 bytes are kept in .*the same command goes on"):
        download(remote(server), tmp_path, Network(retries=1, timeout=5, pause=0.01))
    assert (tmp_path / "data.bin.part").stat().st_size == 500_000
    server.always = serve()
    server.asked.clear()
    assert download(remote(server), tmp_path, FAST).read_bytes() == CONTENT
    assert server.asked[0]["Range"] == "bytes=500000-"
    assert names(tmp_path) == ["data.bin", "data.bin.receipt"]


@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"', None])
def test_a_server_without_ranges_starts_anew(etag: str | None, server: Server, tmp_path: Path) -> None:
    server.always = serve(ranges=False, etag=etag)
    server.steps += [serve(ranges=False, etag=etag, cut=400_000), serve(ranges=False, etag=etag, cut=300_000)]
    assert download(remote(server), tmp_path, FAST).read_bytes() == CONTENT
    assert len(server.asked) == 3
    # a weak tag promises nothing, so nothing is built on it
    assert ("If-Range" in server.asked[1]) == (etag == '"one"')


def test_a_server_without_ranges_that_always_breaks_is_given_up(server: Server, tmp_path: Path) -> None:
    server.always = serve(ranges=False, cut=400_000)
    with pytest.raises(ResourceError, match="4 from the beginning"):
        download(remote(server), tmp_path, FAST)
    assert len(server.asked) == 5


@pytest.mark.parametrize("polite", [True, False])
def test_a_file_that_changed_in_between_comes_whole(polite: bool, server: Server, tmp_path: Path) -> None:
    old = b"x" * len(CONTENT)
    server.steps.append(serve(old, etag='"old"', cut=400_000))
    if not polite:  # a range of the new version in spite of If-Range

        def other(handler: Any) -> None:
            del handler.headers["If-Range"]
            serve()(handler)

        server.steps.append(other)
    heard = Heard()
    assert download(remote(server, size=None), tmp_path, FAST, heard).read_bytes() == CONTENT
    assert any("anew" in text or "another range" in text for text in heard.texts)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (404, r"not there \(404\); the file may have moved, look at the DOI"),
        (410, "not there"),
        (202, "wants a browser or a login. Download the file by hand"),
        (403, "403 Forbidden: the server wants a browser"),
        (400, "no answer with a file"),
    ],
)
def test_a_refusal_is_not_repeated(code: int, message: str, server: Server, tmp_path: Path) -> None:
    server.always = status(code)
    with pytest.raises(DataError, match=message):
        download(remote(server), tmp_path, FAST)
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_the_next_server_is_asked_when_one_refuses(server: Server, tmp_path: Path) -> None:
    server.steps.append(status(202))
    file = remote(server, urls=(server.url + "/first", server.url + "/second"))
    assert download(file, tmp_path, FAST).read_bytes() == CONTENT
    assert [asked["path"] for asked in server.asked] == ["/file/first", "/file/second"]


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(code: int, server: Server, tmp_path: Path) -> None:
    server.steps += [status(code), status(code, Retry_After="0"), status(code)]
    assert download(remote(server), tmp_path, FAST).read_bytes() == CONTENT
    assert len(server.asked) == 4


def test_what_a_server_asks_to_wait_is_waited(server: Server, tmp_path: Path) -> None:
    server.steps.append(status(429, Retry_After="1"))
    heard = Heard()
    download(remote(server), tmp_path, FAST, heard)
    assert heard.texts == ["data.bin: the server answers 429; going on in 1 s"]


def test_nobody_there(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ResourceError, match="ConnectError"):
        download(remote(server, urls=("http://127.0.0.1:9/file",)), tmp_path, FAST)


def test_a_hanging_server_times_out_and_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.steps.append(hang)
    heard = Heard()
    network = Network(retries=3, timeout=0.3, pause=0.01)
    assert download(remote(server), tmp_path, network, heard).read_bytes() == CONTENT
    assert "ReadTimeout" in heard.texts[0]
    assert server.asked[1]["Range"] == "bytes=300000-"


def test_too_few_bytes_without_a_length_are_a_broken_connection(server: Server, tmp_path: Path) -> None:
    server.steps.append(serve(length=False, cut=100_000))
    assert download(remote(server), tmp_path, FAST).read_bytes() == CONTENT
    assert server.asked[1]["Range"] == "bytes=100000-"


def test_too_many_bytes_are_refused(server: Server, tmp_path: Path) -> None:
    server.always = serve(CONTENT + b"more", length=False)
    with pytest.raises(DataError, match="more bytes come than the 1,024,000"):
        download(remote(server), tmp_path, FAST)
    assert not (tmp_path / "data.bin").exists()


def test_another_size_than_the_published_one_is_refused_before_it_comes(server: Server, tmp_path: Path) -> None:
    server.steps.append(serve(cut=500_000))
    server.always = serve(CONTENT[:-1], etag='"new"')
    with pytest.raises(DataError, match=r"has 1,023,999 bytes, but the published file has 1,024,000"):
        download(remote(server), tmp_path, FAST)
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:500_000]


@pytest.mark.parametrize(
    "answer",
    [
        status(200, PAGE, Content_Type="text/html; charset=utf-8"),
        status(200, PAGE),
        status(200, b"\n  <HTML>", Content_Type="application/octet-stream"),
    ],
)
def test_a_web_page_is_not_the_file(answer: Any, server: Server, tmp_path: Path) -> None:
    server.steps += [serve(cut=500_000), answer]
    with pytest.raises(DataError, match="a web page came instead of the file"):
        download(remote(server, size=None), tmp_path, FAST)
    # what came before is not lost to a page
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:500_000]
    assert download(remote(server), tmp_path, FAST).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_redirects_are_followed_each_time(code: int, server: Server, tmp_path: Path) -> None:
    away = status(code, Location=server.url + "/elsewhere?signed=1")
    server.steps += [away, serve(cut=600_000), away]
    assert download(remote(server), tmp_path, FAST).read_bytes() == CONTENT
    assert [asked["path"] for asked in server.asked] == ["/file", "/file/elsewhere?signed=1"] * 2
    assert server.asked[3]["Range"] == "bytes=600000-"


@pytest.mark.parametrize("location", ["http://example.org/file", "ftp://127.0.0.1/file", "file:///etc/passwd"])
def test_a_redirect_to_a_place_without_encryption_is_not_followed(
    location: str, server: Server, tmp_path: Path
) -> None:
    server.always = status(302, Location=location)
    with pytest.raises(DataError, match=r"not encrypted|protocol"):
        download(remote(server), tmp_path, FAST)
    assert len(server.asked) == 1


def test_an_address_without_encryption_is_not_asked(tmp_path: Path) -> None:
    file = RemoteFile("data.bin", ("http://example.org/file",), ("0" * 32,), 10)
    with pytest.raises(DataError, match="not encrypted"):
        download(file, tmp_path, FAST)


def test_redirects_in_a_circle_end(server: Server, tmp_path: Path) -> None:
    server.always = status(302, Location=server.url)
    with pytest.raises(DataError, match="more than 10 redirects"):
        download(remote(server), tmp_path, FAST)


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_complete_part_only_gets_its_name(size: int | None, server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert download(remote(server, size=size), tmp_path, FAST).read_bytes() == CONTENT
    assert len(server.asked) == (0 if size else 1)


def test_a_part_that_is_too_long_is_given_up(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT + b"more")
    assert download(remote(server), tmp_path, FAST).read_bytes() == CONTENT


def test_a_wrong_checksum_is_kept_aside(server: Server, tmp_path: Path) -> None:
    wrong = CONTENT[:-1] + b"?"
    server.steps.append(serve(wrong))
    md5 = hashlib.md5(wrong).hexdigest()
    with pytest.raises(CorruptDataError, match=rf"md5 {md5}, expected .*; kept as data.bin.bad"):
        download(remote(server), tmp_path, FAST)
    assert names(tmp_path) == ["data.bin.bad"]
    assert (tmp_path / "data.bin.bad").read_bytes() == wrong
    assert download(remote(server), tmp_path, FAST).read_bytes() == CONTENT
    assert names(tmp_path) == ["data.bin", "data.bin.receipt"]


def test_either_of_two_published_checksums_is_right(server: Server, tmp_path: Path) -> None:
    file = remote(server, md5=("0" * 32, hashlib.md5(CONTENT).hexdigest()))
    assert download(file, tmp_path, FAST).read_bytes() == CONTENT


def test_a_part_that_was_damaged_in_between_is_found(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(b"?" + CONTENT[1:1000])
    with pytest.raises(CorruptDataError, match=r"kept as data\.bin\.bad"):
        download(remote(server), tmp_path, FAST)


def test_bits_that_rot_later_are_found_when_asked_for(server: Server, tmp_path: Path) -> None:
    path = download(remote(server), tmp_path, FAST)
    path.write_bytes(b"?" + CONTENT[1:])
    download(remote(server), tmp_path, FAST)
    with pytest.raises(CorruptDataError, match=r"kept as data\.bin\.bad"):
        download(remote(server), tmp_path, FAST, verify=True)
    path.write_bytes(b"another file, put there by hand")
    with pytest.raises(CorruptDataError, match="31 bytes with md5"):
        download(remote(server), tmp_path, FAST)
    path.write_bytes(CONTENT)
    heard = Heard()
    download(remote(server), tmp_path, FAST, heard)
    assert "computing its checksum" in heard.texts[0]
    assert len(server.asked) == 1


def test_a_full_disk_is_known_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=2_000_000_000))
    with pytest.raises(ResourceError, match=r"5.07 GB are needed on this disk, 2.00 GB are free"):
        download(remote(server, size=5_000_000_000), tmp_path, FAST)
    assert server.asked == []
    server.always = serve(headers={"Content-Length": "3000000000"}, length=False)
    with pytest.raises(ResourceError, match=r"3.07 GB are needed"):
        download(remote(server, size=None), tmp_path, FAST)


def test_one_at_a_time(server: Server, tmp_path: Path) -> None:
    with (
        alone_in(tmp_path / "new"),
        pytest.raises(ResourceError, match="another gfm download is writing to"),
        alone_in(tmp_path / "new"),
    ):
        pass
    with alone_in(tmp_path / "new"):
        pass


def _tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz")])
def test_a_tar_file_is_unpacked_once(name: str, mode: str, server: Server, tmp_path: Path) -> None:
    path = _tar(tmp_path / name, {"a/1.txt": b"one", "a/b/2.txt": b"two"}, mode)
    folder = unpack(remote(server), path)
    assert folder == tmp_path / "a"
    assert (folder / "a" / "b" / "2.txt").read_bytes() == b"two"
    assert names(tmp_path) == ["a", name]
    (folder / "a" / "1.txt").write_bytes(b"mine")
    assert (unpack(remote(server), path) / "a" / "1.txt").read_bytes() == b"mine"
    plain = tmp_path / "plain.h5"
    plain.write_bytes(b"x")
    assert unpack(remote(server), plain) == plain


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside.txt"),
        tarfile.TarInfo("a/../../outside.txt"),
        _special("link", tarfile.SYMTYPE, "/etc/passwd"),
        _special("link", tarfile.SYMTYPE, "."),
        _special("link", tarfile.LNKTYPE, "../outside.txt"),
        _special("device", tarfile.CHRTYPE),
        _special("pipe", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_that_reaches_out_is_refused(
    member: tarfile.TarInfo, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    path = _tar(tmp_path / "in" / "a.tar", {"good.txt": b"good", "bad": member})
    with pytest.raises(CorruptDataError, match="not safe to unpack"):
        unpack(remote(server), path)
    assert names(tmp_path) == ["in"]
    assert names(tmp_path / "in") == ["a.tar"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_archive_leaves_nothing(mode: str, server: Server, tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", {"1.bin": os.urandom(50_000)}, mode)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(CorruptDataError, match="not readable as a tar file"):
        unpack(remote(server), path)
    assert names(tmp_path) == ["a.tar"]


def test_the_table_is_sound() -> None:
    files = [file for item in ARCHIVES.values() for file in (*item.files, *item.splits.values())]
    assert len({file.name for file in files}) == len(files)
    for file in files:
        assert all(url.startswith("https://") for url in file.urls)
        assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in file.md5)
        assert file.nbytes > 0
    assert set(ARCHIVES) <= set(READERS.names())


@pytest.mark.parametrize(
    ("name", "splits"),
    [("oc20", ["200K"]), ("oc20", ["200K", "val_id"]), *((n, []) for n in ("ani1x", "qm7x", "oc22", "mptrj"))],
)
@pytest.mark.parametrize("directory", ["raw", "my data, all: of it"])
def test_the_recipe_at_the_end_is_one(name: str, splits: list[str], directory: str) -> None:
    place = Path(directory) / name
    files = [place / file.name for file in ARCHIVES[name].chosen(name, splits)]
    recipe = parse_config(Recipe, yaml.safe_load("\n".join(recipe_lines(name, place, files))), "recipe")
    assert len(recipe.sources) == max(1, len(splits))
    for source in recipe.sources:
        source.open_reader()
        assert Path(source.path).is_relative_to(place)
        assert "{" not in source.path


def test_splits_are_asked_for_by_name() -> None:
    with pytest.raises(ConfigError, match=r"say --split NAME.*200K \(0.3 GB\), 2M"):
        ARCHIVES["oc20"].chosen("oc20", [])
    with pytest.raises(ConfigError, match=r"no split 'val_od'.*Did you mean 'val_id'"):
        ARCHIVES["oc20"].chosen("oc20", ["val_od"])
    with pytest.raises(ConfigError, match=r"mptrj has no split '2M'.*it comes as a whole"):
        ARCHIVES["mptrj"].chosen("mptrj", ["2M"])


def test_the_list_shows_what_there_is() -> None:
    result = CliRunner().invoke(download_app, ["--json"])
    rows = {(row["name"], row["split"]): row for row in json.loads(result.stdout)}
    assert len(rows) == 4 + 8
    assert rows["mptrj", None]["bytes"] == 12_188_168_685
    assert rows["mptrj", None]["licence"] == READERS.get("mptrj")().about().licence
    assert rows["qm7x", None]["doi"] == "10.5281/zenodo.4288677"
    shown = CliRunner().invoke(download_app, ["--list"])
    assert "ani1x-release.h5" in shown.stdout
    assert "CC0-1.0" in shown.stdout
    assert "10.1038/s41597-020-0473-z" in shown.stdout


def test_the_verb_downloads_unpacks_and_says_how_to_go_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _tar(tmp_path / "s2ef_x.tar", {"s2ef/1.txt": b"one"}).read_bytes()
    server.always = serve(content)
    file = remote(server, content, name="s2ef_x.tar")
    monkeypatch.setitem(ARCHIVES, "oc20", Archive(splits={"x": file}, path="{folder}/"))
    arguments = ["oc20", str(tmp_path / "raw"), "--split", "x"]
    result = CliRunner().invoke(download_app, arguments)
    assert result.exit_code == 0, result.output
    assert "with --unpack unpacks them" in result.stderr
    result = CliRunner().invoke(download_app, [*arguments, "--unpack"])
    assert "still packed" not in result.stderr
    (source,) = yaml.safe_load(result.stdout)["sources"]
    assert source == {"name": "oc20", "reader": "oc20", "path": str(tmp_path / "raw" / "oc20" / "s2ef_x")}
    assert (Path(source["path"]) / "s2ef" / "1.txt").read_bytes() == b"one"
    result = CliRunner().invoke(download_app, [*arguments, "--unpack", "--json"])
    assert json.loads(result.stdout)["packed"] == []
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mptr", "raw"], "Did you mean 'mptrj'"),
        (["mptrj"], "say where to put it: gfm download mptrj DIR"),
        (["oc20", "raw"], "say --split"),
    ],
)
def test_what_is_asked_wrongly_is_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(download_app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


_PROGRAM = """
import sys
from ingest.archives import ARCHIVES, Archive, RemoteFile
from ingest.download_cli import download_app
ARCHIVES["mptrj"] = Archive((RemoteFile("data.bin", (sys.argv[1],), (sys.argv[2],), int(sys.argv[3])),))
download_app(["mptrj", sys.argv[4]])
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_an_interrupted_download_goes_on(
    number: signal.Signals, code: int, server: Server, tmp_path: Path
) -> None:
    server.steps.append(hang)
    command = [sys.executable, "-c", _PROGRAM, server.url, hashlib.md5(CONTENT).hexdigest()]
    command += [str(len(CONTENT)), str(tmp_path)]
    part = tmp_path / "mptrj" / "data.bin.part"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size == 300_000):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    if code == 130:
        assert "the same command goes on from there" in said
    assert part.stat().st_size == 300_000
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mptrj" / "data.bin").read_bytes() == CONTENT
    assert server.asked[1]["Range"] == "bytes=300000-"
