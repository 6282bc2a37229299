"""The three containers of ASE databases (SQLite, LMDB, JSON): cut into ranges of ids, fetched row by row.

SQLite is opened for reading only. LMDB (``.aselmdb``) holds zlib-compressed JSON under keys b"1", b"2", ...,
beside b"nextid", b"deleted_ids" and b"metadata". ASE writes JSON databases with every row's id at the start of
a line, so that those are cut by bytes; JSON that another program wrote is read whole.

Source: ``ase/db/sqlite.py``, ``ase/db/jsondb.py``; ``aselmdb.py`` in ase-db-backends and fairchem.
"""

import mmap
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from gfm.errors import CorruptDataError, DataError
from ingest.readers.ase_rows import SQLITE_COLUMNS, Row, inflate, parse_json, row_from_sqlite
from ingest.readers.lmdb_pages import LmdbFile, is_lmdb, open_lmdb
from ingest.readers.records import Refused

__all__ = ["Found", "container_of", "metadata_of", "ranges_of", "rows_of"]

Container = Literal["sqlite", "lmdb", "json"]
Found = tuple[int, Row | Refused]  # id of a row, and the row or why there is none

_VERSIONS = range(5, 10)  # of ASE's SQLite layout: those that ASE itself reads without conversion
_RESERVED = (b"nextid", b"deleted_ids", b"metadata")
# In JSON as ASE writes it only a row begins so: inside of rows a line break is followed by a space.
_JSON_ROW = re.compile(rb'(?:\A\{|\n)"(?:(\d+)": (?=\{)|(?:metadata|ids|nextid)": )')
# What SQLite says of pages and trees; it also remarks on the types of values, which ASE does not keep to.
_STRUCTURE = re.compile(r"\b(page|tree|freelist|overflow)\b", re.IGNORECASE)
_MOST_SINGLE = 1_000_000  # ids that are tried one by one behind damage


def container_of(file: Path) -> Container:
    """Say by its first bytes what a database is kept in."""
    with file.open("rb") as stream:
        if stream.read(16) == b"SQLite format 3\0":
            return "sqlite"
    return "lmdb" if is_lmdb(file) or file.suffix == ".aselmdb" else "json"


def ranges_of(file: Path, container: Container, part_bytes: int) -> list[tuple[int, int]]:
    """Return ranges of ids (of bytes for JSON) of about equal bytes.

    Raises:
        CorruptDataError: It cannot be opened.
        DataError: It has no rows, or is no ASE database.
    """
    size = file.stat().st_size
    if container == "json":
        if not _is_lined(file):
            return [(0, size)]
        first, stop, most = 0, size, size
    elif container == "sqlite":
        first, stop, most = _sqlite_ids(file)
    else:
        first, stop = 1, _num_lmdb_ids(file) + 1
        most = stop - first
    if most <= 0:
        raise DataError(f"{file}: no row in this ASE database")
    count = max(1, min(most, -(-size // max(part_bytes, 1))))
    edges = [first + (stop - first) * index // count for index in range(count + 1)]
    return list(pairwise(edges))


def rows_of(file: Path, container: Container, start: int, stop: int) -> Iterator[Found]:
    """Yield every row of a range, or why it cannot be read.

    Raises:
        CorruptDataError: The file cannot be opened.
        DataError: It is no ASE database.
    """
    read = {"sqlite": _sqlite_rows, "lmdb": _lmdb_rows, "json": _json_rows}[container]
    yield from read(file, start, stop)


def metadata_of(file: Path, container: Container) -> dict[str, Any]:
    """Return what the writer noted about the whole database, such as schnetpack's units; else an empty dict.

    Raises:
        CorruptDataError: The file cannot be opened.
    """
    text: bytes | str | None = None
    metadata: Any = {}
    try:
        if container == "sqlite":
            with closing(_connect(file)) as connection:
                found = connection.execute("SELECT value FROM information WHERE name='metadata'").fetchone()
                text = found[0] if found else None
        elif container == "lmdb":
            metadata = _lmdb_json(open_lmdb(file), b"metadata")
        elif match := re.search(rb'\n"metadata": (\{.*\}),\n"ids":', _tail(file)):
            text = match[1]
        metadata = parse_json(text) if text else metadata
    except (Refused, sqlite3.Error):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _tail(file: Path) -> bytes:
    """Return the last bytes of a file: behind the rows, JSON databases have what is about all of them."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - (4 << 20)))
        return stream.read()


def _connect(file: Path) -> sqlite3.Connection:
    """Open SQLite for reading; without locks where no writer has left a journal, as network disks like it."""
    journals = any(file.with_name(file.name + suffix).exists() for suffix in ("-wal", "-journal"))
    address = f"file:{quote(str(file.absolute()))}?mode=ro{'' if journals else '&immutable=1'}"
    connection = sqlite3.connect(address, uri=True)
    # Text that is no UTF-8 costs its row, not the whole query.
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return connection


def _sqlite_ids(file: Path) -> tuple[int, int, int]:
    """Return the first id, one past the last, and the number of rows."""
    try:
        with closing(_connect(file)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name='systems'").fetchone():
                raise DataError(f"{file}: SQLite, but no ASE database (it has no table called systems)")
            version = int(
                connection.execute("SELECT value FROM information WHERE name='version'").fetchone()[0]
            )
            damage = _sqlite_damage(connection)
            low, high, count = connection.execute("SELECT min(id), max(id), count(*) FROM systems").fetchone()
    except (sqlite3.Error, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise CorruptDataError(f"{file}: not readable as an ASE database: {error}") from error
    if damage:
        raise CorruptDataError(
            f"{file}: the pages of this SQLite file contradict each other ({damage}), so that rows may be "
            "missing or mixed up; compare it with its source, or mend it: sqlite3 FILE .recover | sqlite3 NEW"
        )
    if version not in _VERSIONS:
        raise DataError(
            f"{file}: version {version} of ASE's database layout, expected {_VERSIONS[0]} to {_VERSIONS[-1]}; "
            "convert it with ase db"
        )
    return (low, high + 1, count) if count else (0, 0, 0)


def _sqlite_damage(connection: sqlite3.Connection) -> str:
    """Return what is wrong with the tree of rows that queries would pass over in silence; mostly nothing.

    A query ends early, or returns a stretch of another row, where pages are out of order or used twice. A look
    at all of them costs a thirtieth of reading the rows. A page that cannot be used a query reports itself.
    """
    try:
        found = [str(text) for (text,) in connection.execute("PRAGMA quick_check('systems')")]
        by_index, in_table = (
            connection.execute(f"SELECT count(*) FROM systems {how}").fetchone()[0]
            for how in ("", "NOT INDEXED")
        )
    except sqlite3.DatabaseError:
        return _sqlite_unfound(connection)
    if by_index != in_table:
        return f"{by_index} rows by its index, {in_table} in its table"
    lines = (line for text in found for line in text.splitlines() if _STRUCTURE.search(line))
    return next((line[:200] for line in lines if "error code" not in line and not line.startswith("***")), "")


def _sqlite_unfound(connection: sqlite3.Connection) -> str:
    """Return what is wrong where not all pages can be used: a row that is there, not found by its id."""
    try:
        for (row_id,) in connection.execute("SELECT id FROM systems NOT INDEXED"):
            if not connection.execute("SELECT 1 FROM systems WHERE id=?", (row_id,)).fetchone():
                return f"row {row_id} is not found by its id"
    except sqlite3.DatabaseError:
        return ""  # so will the queries for the rows, and there it is counted
    return ""


def _sqlite_rows(file: Path, start: int, stop: int) -> Iterator[Found]:
    query = f"SELECT {', '.join(SQLITE_COLUMNS)} FROM systems WHERE id BETWEEN ? AND ? ORDER BY id"
    with closing(_connect(file)) as connection:
        try:
            for columns in connection.execute(query, (start, stop - 1)):
                start = columns[0] + 1
                yield columns[0], _sqlite_row(columns)
            return
        except sqlite3.Error as error:
            damage = str(error)
        # A damaged page ends a query; the rows behind it are asked for one at a time.
        if stop - start > _MOST_SINGLE:
            yield start, Refused("unreadable", f"ids {start}..{stop}: {damage}")
            return
        for row_id in range(start, stop):
            try:
                columns = connection.execute(query, (row_id, row_id)).fetchone()
            except sqlite3.Error as error:
                yield row_id, Refused("unreadable", error)
                continue
            if columns is not None:
                yield row_id, _sqlite_row(columns)


def _sqlite_row(columns: tuple[Any, ...]) -> Row | Refused:
    try:
        return row_from_sqlite(columns)
    except Refused as refused:
        return refused


def _lmdb_json(opened: LmdbFile, key: bytes) -> Any:
    """Return a reserved value; None where there is none that can be read."""
    try:
        packed = opened.get(key)
        return None if packed is None else parse_json(inflate(packed))
    except Refused:
        return None


def _num_lmdb_ids(file: Path) -> int:
    """Return the highest id, believing b"nextid" only where the number of keys agrees."""
    opened = open_lmdb(file)
    following, deleted = _lmdb_json(opened, b"nextid"), _deleted(opened)
    try:
        entries = opened.entries - sum(opened.get(key) is not None for key in _RESERVED)
        if type(following) is int and following - 1 - len(deleted) == entries:
            return following - 1
        keys = [int(key) for key in opened.all_keys() if key.isdigit()]
    except Refused as refused:
        raise CorruptDataError(f"{file}: not readable as LMDB: {refused.value}") from refused
    highest = max(keys, default=0)
    # Gaps are written down as missing; what a mad key announces is not.
    if highest > 2 * (len(keys) + len(deleted)) + 1000:
        raise DataError(f"{file}: {len(keys)} rows, and yet a key of {highest}; expected b'1', b'2', ...")
    return highest


def _deleted(opened: LmdbFile) -> set[int]:
    """Return the ids of rows that the writer removed."""
    ids = _lmdb_json(opened, b"deleted_ids")
    if isinstance(ids, dict):  # ASE's encoding of an array
        content = ids.get("__ndarray__")
        ids = content[-1] if isinstance(content, list) and content else None
    return {index for index in ids if type(index) is int and index > 0} if isinstance(ids, list) else set()


def _lmdb_rows(file: Path, start: int, stop: int) -> Iterator[Found]:
    opened = open_lmdb(file)
    deleted = _deleted(opened)
    for row_id in range(start, stop):
        try:
            packed = opened.get(str(row_id).encode())
            if packed is None:
                if row_id in deleted:
                    continue
                raise Refused("missing-record", f"there is no key b'{row_id}'")
            yield row_id, Row(parse_json(inflate(packed)))
        except Refused as refused:
            yield row_id, refused


def _is_lined(file: Path) -> bool:
    """Say whether a JSON database has one row's id at the start of a line, as ASE writes it."""
    with file.open("rb") as stream:
        return re.match(rb'\{"\d+": \{\n "', stream.read(64)) is not None


def _json_rows(file: Path, start: int, stop: int) -> Iterator[Found]:
    if not _is_lined(file):
        yield from _whole_json(file)
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        match = _JSON_ROW.search(text, start)
        while match is not None and match.start() < stop:
            following = _JSON_ROW.search(text, match.end())
            if match[1] is not None:
                end = following.start() if following else len(text)
                yield int(match[1]), _json_row(text[match.end() : end])
            match = following


def _json_row(text: bytes) -> Row | Refused:
    text = text.rstrip().removesuffix(b",")
    try:
        try:
            return Row(parse_json(text))
        except Refused:
            if not text.endswith(b"}}"):
                raise
            return Row(parse_json(text[:-1]))  # the last row of a file without ids: it closes the file as well
    except Refused as refused:
        return refused


def _whole_json(file: Path) -> Iterator[Found]:
    try:
        content = parse_json(file.read_bytes())
    except Refused as refused:
        raise CorruptDataError(f"{file}: not readable as JSON: {refused.value}") from None
    ids = [key for key in content if key.isdecimal()] if isinstance(content, dict) else []
    if not ids:
        raise DataError(f"{file}: JSON, but no ASE database (no row called 1, 2, ...)")
    for key in ids:
        try:
            yield int(key), Row(content[key])
        except Refused as refused:
            yield int(key), refused
