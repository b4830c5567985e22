"""Opening the spool: which generation goes on, what an earlier crash lost, and quarantine of a corrupt file.

The boot id of the wire is `<kernel boot id>.<token>`. A spool that was closed cleanly in the same kernel
boot goes on with its token and its sequences. After a crash, a corrupt file or a reboot the token is new, so
that no sequence is ever used twice for different content.

What was made and not yet in the file is known from a one-line file beside it, `used`, written (not synced)
before each wait for a sync: it survives `kill -9`, so the loss is reported exactly. After a power cut that
line may be old; then the loss, at most the sync interval, is reported as an event without a count.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from gpuvigil_agent.ledger import CLASSES, EVENTS, METRICS
from gpuvigil_agent.spool_store import Gap, Store

FILE: Final = "spool.db"
USED_FILE: Final = "used"
QUARANTINED_MAX: Final = 2
_CORRUPT_CODES: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_SPACE_CODES: Final = {sqlite3.SQLITE_FULL}


class SpoolError(Exception):
    """The spool cannot be used at all; the text is for the operator."""


class CorruptError(sqlite3.DatabaseError):
    """What was read back cannot have been written by us: as bad as what SQLite itself calls corrupt."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


@contextlib.contextmanager
def doubting() -> Iterator[None]:
    """Take wrong types, impossible numbers and undecodable text in a file for what they are: corruption."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CorruptError(repr(error)) from error


class Opened(NamedTuple):
    """How the spool goes on: boot id, next sequence of each class, samples made, what was lost."""

    boot_id: str
    following: dict[int, int]
    samples: int
    lost: list[Gap]
    unclean: bool


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code of an error, -1 when it has none."""
    return int(getattr(error, "sqlite_errorcode", -1) or -1) & 0xFF


def is_corrupt(error: sqlite3.Error) -> bool:
    """Tell whether the file itself is bad, so that waiting cannot help."""
    return primary_code(error) in _CORRUPT_CODES


def fault_word(error: sqlite3.Error) -> str:
    """Name an operating fault for state, log and metric."""
    return "disk_full" if primary_code(error) in _SPACE_CODES else "io_error"


def new_boot_id(kernel_boot_id: str) -> str:
    """Return a boot id that no earlier spool has used."""
    return f"{kernel_boot_id}.{secrets.token_hex(4)}"


def quarantine(path: Path) -> Path:
    """Move a corrupt file and its WAL aside, keep the newest two such files; returns the new name."""
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    kept = sorted(p for p in path.parent.glob(f"{path.name}.corrupt-*") if p.suffix.split("-")[-1].isdigit())
    for old in kept[:-QUARANTINED_MAX]:
        for suffix in ("", "-wal", "-shm"):
            old.with_name(old.name + suffix).unlink(missing_ok=True)
    return aside


def go_on(store: Store, kernel_boot_id: str, used_line: str) -> Opened:
    """Decide the generation and write it down. Commits; sqlite3.Error goes to the caller."""
    before, clean = store.meta("boot_id"), store.meta("clean") == "1"
    following = {number: int(store.meta(f"next_{name}") or 1) for number, name in CLASSES.items()}
    samples = int(store.meta("samples") or 0)
    lost: list[Gap] = []
    boot_id, unclean = before or "", before is not None and not clean
    if before is None or unclean or not before.startswith(kernel_boot_id + "."):
        lost = _lost(before, following, samples, used_line) if before and unclean else []
        boot_id, following, samples = new_boot_id(kernel_boot_id), {METRICS: 1, EVENTS: 1}, 0
    store.begin()
    for gap in lost:
        store.put_gap(gap)
    store.remember("clean", "0")
    remember_progress(store, boot_id, following, samples)
    store.commit()
    return Opened(boot_id, following, samples, lost, unclean)


def remember_progress(store: Store, boot_id: str, following: dict[int, int], samples: int) -> None:
    """Write the generation, its next sequences and the samples made so far, in the caller's transaction."""
    store.remember("boot_id", boot_id)
    for number, name in CLASSES.items():
        store.remember(f"next_{name}", str(following[number]))
    store.remember("samples", str(samples))


def _lost(boot_id: str, following: dict[int, int], samples: int, used_line: str) -> list[Gap]:
    found = parse_used(used_line)
    if found is None or found[0] != boot_id:
        return []
    gaps = []
    for number, last in ((METRICS, found[1]), (EVENTS, found[2])):
        if last >= following[number]:
            missing = max(0, found[3] - samples) if number == METRICS else 0
            gaps.append(Gap(boot_id, number, following[number], last, "crash", missing))
    return gaps


def used_text(boot_id: str, following: dict[int, int], samples: int) -> bytes:
    """Render the line of the `used` file, of fixed length so that it is overwritten in place."""
    line = f"{boot_id} {following[METRICS] - 1} {following[EVENTS] - 1} {samples} end"
    return line.ljust(159).encode() + b"\n"


def parse_used(line: str) -> tuple[str, int, int, int] | None:
    """Undo `used_text`; None when the line is not whole."""
    parts = line.split()
    if len(parts) != 5 or parts[4] != "end" or not all(part.isdigit() for part in parts[1:4]):
        return None
    return parts[0], int(parts[1]), int(parts[2]), int(parts[3])


def make_directory(directory: Path) -> None:
    """Make the spool's folder. Raises SpoolError that names it when it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SpoolError(f"spool directory {directory}: cannot be made: {error.strerror}") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise SpoolError(f"spool directory {directory}: expected a directory this user can write")
