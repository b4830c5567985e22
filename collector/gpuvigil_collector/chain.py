"""The journal's chain, walked: whether each entry follows the one before it and the anchored heads fit."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_collector import anchor

GENESIS: Final = "0" * 64
FILE: Final = "journal.sqlite"
_TEXT_MAX: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """What a walk found. wrong: the first sequence that does not fit, None when all do; why: in words.

    entries, oldest, newest: what could be read up to there; head: the hash of the newest one.
    """

    entries: int = 0
    oldest: int = 0
    newest: int = 0
    head: str = GENESIS
    anchored: int = 0
    wrong: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much the journal keeps by its settings, and for how long, s."""

    entries_max: int
    keep_s: float


def entry_hash(previous: str, entry: tuple[object, ...]) -> str:
    """Chain one entry (sequence, time_ns, incident, what, detail) to the hash before it."""
    return hashlib.sha256(previous.encode() + msgspec.json.encode(entry)).hexdigest()


def walk(database: sqlite3.Connection, heads: Sequence[anchor.Head], keeps: Retention) -> Walked:
    """Walk the chain and hold it against the anchored heads.

    With the heads it finds also what was rewritten with its hashes, cut off or taken out; a journal that
    cannot be read does not fit.
    """
    previous: str | None = None
    hashes: dict[int, str] = {}
    newest_ns = 0
    try:
        for *entry, before, digest in database.execute("SELECT * FROM journal ORDER BY sequence"):
            why = _misfit(entry, before, digest, previous, hashes)
            if why:
                return _walked(hashes, heads, int(entry[0]), why)
            previous, hashes[entry[0]], newest_ns = digest, digest, max(newest_ns, entry[1])
    except (
        sqlite3.Error,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # other columns or types than ours
        return _walked(hashes, heads, max(hashes, default=0) + 1, f"cannot be read: {error}")
    kept = anchor.Kept(hashes=hashes, entries_max=keeps.entries_max, keep_ns=int(keeps.keep_s * 1e9))
    wrong = anchor.misfit(heads, kept, newest_ns)
    return _walked(hashes, heads, wrong, "" if wrong is None else _against(wrong, hashes))


def walk_file(path: Path, heads: Sequence[anchor.Head], keeps: Retention) -> Walked:
    """Walk the journal in a file, also while a collector writes it. Raises sqlite3.Error, OSError."""
    path.stat()
    with closing(_opened(path)) as database:
        return walk(database, heads, keeps)


def _opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2)
    try:
        database.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        database.close()
        wal = path.with_name(path.name + "-wal")
        if wal.exists() and wal.stat().st_size:
            raise
        # a copy in a folder that we may not write: nothing waits beside it, so it is whole as it is
        return sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, timeout=2)
    except sqlite3.DatabaseError:
        pass  # no database at all: the walk says so
    return database


def _misfit(
    entry: list[object], before: object, digest: object, previous: str | None, hashes: dict[int, str]
) -> str:
    number = entry[0]
    assert isinstance(number, int)
    what = f"({str(entry[3])[:_TEXT_MAX]!r})"
    if previous is not None and (before != previous or number - 1 not in hashes):
        return f"entry {number} {what} does not follow the one before it"
    if entry_hash(str(before), tuple(entry)) != digest:
        return f"entry {number} {what} is not what was written: its hash is another"
    return ""


def _against(wrong: int, hashes: dict[int, str]) -> str:
    if wrong > max(hashes, default=0):
        return f"entries up to {wrong} were written by the anchor, and are gone"
    if wrong <= min(hashes, default=0):
        return f"entries before {wrong} are gone, more than retention explains"
    return f"entry {wrong} is another than the anchor says: the chain was rewritten"


def _walked(hashes: dict[int, str], heads: Sequence[anchor.Head], wrong: int | None, why: str) -> Walked:
    newest = max(hashes, default=0)
    return Walked(
        entries=len(hashes), oldest=min(hashes, default=0), newest=newest, head=hashes.get(newest, GENESIS),
        anchored=len(heads), wrong=wrong, why=why,
    )  # fmt: skip
