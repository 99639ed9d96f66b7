"""What an import has done, on disk: a file of sqlite beside the input.

It holds the CID of every node by what the files call it (so memory does not grow with their
number), which chunks of which file are done, and the rows that failed. A chunk is recorded together
with all that it made, in one transaction, after the cluster has acknowledged it. An interrupted
import loses at most the record of chunks in flight; sent again under the same Idempotency-Key and
with the same nonces they are found to be there, so they make nothing twice.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from app.bulk.sources import Key

__all__ = ["FileProgress", "Ledger", "LedgerFailed", "RowError"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    file INTEGER PRIMARY KEY, identity BLOB UNIQUE NOT NULL, name TEXT NOT NULL,
    chunk_rows INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS chunks (
    file INTEGER, chunk INTEGER, rows INTEGER NOT NULL, written INTEGER NOT NULL,
    PRIMARY KEY (file, chunk)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS errors (
    file INTEGER, line INTEGER, code TEXT NOT NULL, detail TEXT NOT NULL,
    PRIMARY KEY (file, line)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nodes (
    key TEXT PRIMARY KEY, file INTEGER NOT NULL, line INTEGER NOT NULL, digest BLOB) WITHOUT ROWID;
"""
_FORMAT: Final = "1"
_CACHE_KIB: Final = 65_536
"""What sqlite may keep of the file in memory."""


class LedgerFailed(Exception):
    """The state file cannot be used."""


class RowError(NamedTuple):
    line: int
    code: str
    detail: str


class FileProgress(NamedTuple):
    """A file as the ledger knows it."""

    file: int
    chunk_rows: int
    done: bool


class Ledger:
    """See the module. One process at a time; all calls block for less than some milliseconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=0.5, isolation_level=None)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            # A commit may be lost to a power failure (never to a crash of ours): its chunk is
            # then sent once more, which makes nothing twice.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._db.executescript(_SCHEMA)
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            busy = "locked" in str(error)
            why = "another import uses it" if busy else f"this is no state file ({error})"
            raise LedgerFailed(f"{path}: {why}") from None
        if self._fact("format") is None:
            self._set("format", _FORMAT)
            self._set("import", secrets.token_hex(16))
        if self._fact("format") != _FORMAT:
            raise LedgerFailed(f"{path}: of another version of kotoba")
        self._commit()

    def close(self) -> None:
        """What was not recorded as finished is forgotten."""
        self._db.rollback()
        self._db.close()

    def bind(self, cluster_id: str) -> None:
        """Belong to this cluster. Raises LedgerFailed for one that belongs to another."""
        known = self._fact("cluster")
        if known is not None and known != cluster_id:
            raise LedgerFailed(f"{self.path}: of an import into another cluster ({known[:12]})")
        self._set("cluster", cluster_id)

    @property
    def import_id(self) -> str:
        """Random, and part of every Idempotency-Key."""
        value = self._fact("import")
        assert value is not None
        return value

    def _fact(self, name: str) -> str | None:
        found = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def _set(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _commit(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")

    # Files and chunks

    def open_file(self, identity: bytes, name: str, chunk_rows: int) -> FileProgress:
        """The file with ``identity``, as it was left or anew. A file once begun keeps the size of
        its chunks, since the Idempotency-Keys count from it."""
        self._db.execute(
            "INSERT OR IGNORE INTO files (identity, name, chunk_rows) VALUES (?, ?, ?)",
            (identity, name, chunk_rows),
        )
        row = self._db.execute(
            "SELECT file, chunk_rows, done FROM files WHERE identity = ?", (identity,)
        ).fetchone()
        self._commit()
        return FileProgress(row[0], row[1], bool(row[2]))

    def check_order(self, identities: Sequence[bytes]) -> None:
        """Raise LedgerFailed when a file that was begun would be continued after others than
        before: nodes that were not there then would change what its chunks say."""
        found = self._db.execute("SELECT identity, name FROM files WHERE done = 0").fetchone()
        if found is None:
            return
        unfinished, name = found
        for identity in identities:
            if identity == unfinished:
                return
            known = self._db.execute("SELECT 1 FROM files WHERE identity = ?", (identity,))
            if known.fetchone() is None:
                break
        raise LedgerFailed(
            f"{self.path}: {name} was begun and is not finished; go on with the same files and "
            "options as before, or use another --state"
        )

    def finish_file(self, file: int) -> None:
        self._db.execute("UPDATE files SET done = 1 WHERE file = ?", (file,))
        self._commit()

    def finished_chunks(self, file: int) -> set[int]:
        found = self._db.execute("SELECT chunk FROM chunks WHERE file = ?", (file,))
        return {chunk for (chunk,) in found}

    def counts(self, file: int) -> tuple[int, int]:
        """Rows of the finished chunks, and how many of them were written."""
        found = self._db.execute(
            "SELECT coalesce(sum(rows), 0), coalesce(sum(written), 0) FROM chunks WHERE file = ?",
            (file,),
        ).fetchone()
        return found[0], found[1]

    def finish_chunk(
        self,
        file: int,
        chunk: int,
        rows: int,
        written: int,
        nodes: Sequence[tuple[Key, bytes]],
        errors: Sequence[RowError],
    ) -> None:
        """The cluster has it: remember that, with the digests of the ``nodes`` that have keys."""
        self._db.executemany(
            "UPDATE nodes SET digest = ? WHERE key = ?",
            [(digest, _text(key)) for key, digest in nodes],
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO errors VALUES (?, ?, ?, ?)",
            [(file, *error) for error in errors],
        )
        self._db.execute(
            "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?)", (file, chunk, rows, written)
        )
        self._commit()

    # Rows

    def claim(self, key: Key, file: int, line: int) -> bool:
        """Whether the node at this line is the one that ``key`` names: the first to say so is."""
        text = _text(key)
        made = self._db.execute(
            "INSERT OR IGNORE INTO nodes (key, file, line) VALUES (?, ?, ?)", (text, file, line)
        )
        if made.rowcount:
            return True
        found = self._db.execute("SELECT file, line FROM nodes WHERE key = ?", (text,)).fetchone()
        return bool(found == (file, line))

    def digest(self, key: Key) -> bytes | None:
        """The node that ``key`` names, once it is written."""
        found = self._db.execute("SELECT digest FROM nodes WHERE key = ?", (_text(key),)).fetchone()
        return None if found is None else found[0]

    def error_count(self) -> int:
        count: int = self._db.execute("SELECT count(*) FROM errors").fetchone()[0]
        return count

    def errors(self) -> Iterator[tuple[str, RowError]]:
        """All rows that failed, with the names of their files."""
        found = self._db.execute(
            "SELECT name, line, code, detail FROM errors JOIN files USING (file) "
            "ORDER BY file, line"
        )
        for name, line, code, detail in found:
            yield name, RowError(line, code, detail)

    def keyed_nodes(self) -> Iterator[tuple[Key, bytes]]:
        """All nodes that were written and have a key."""
        found = self._db.execute("SELECT key, digest FROM nodes WHERE digest IS NOT NULL")
        for text, digest in found:
            space, _, name = text.partition("\0")
            yield (space, name), digest


def _text(key: Key) -> str:
    return "\0".join(key)
