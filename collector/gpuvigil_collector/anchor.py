"""The anchor: the head of the journal's chain, written once a minute to a file that only grows.

Whoever can rewrite the journal can rewrite its hashes too; the anchor, kept where he cannot write (another
disk, `chattr +a`, shipped away), shows it. A line: time_ns, newest sequence, its hash, oldest sequence kept.
What was written after the newest line is covered by the chain alone.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from gpuvigil_protos import log

EVERY_NS: Final = 60 * 1_000_000_000
_LINE: Final = re.compile(r"(\d{1,19}) (\d{1,18}) ([0-9a-f]{64}) (\d{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The chain as it was. sequence 0 and oldest 0: nothing was written yet."""

    time_ns: int
    sequence: int
    hash: str
    oldest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The journal as it is: hashes by sequence, oldest first, and what it keeps by its settings."""

    hashes: Mapping[int, str]
    entries_max: int
    keep_ns: int


class Anchor:
    """One writer, the brain's thread. A file that cannot be written is a fault, and is tried again."""

    def __init__(self, path: Path) -> None:
        self.fault = ""
        self._path = path
        self._exported_ns = 0
        self._log = log.get("anchor")

    def due(self, now_ns: int) -> bool:
        """Tell whether a minute has passed, or the clock went back."""
        return not 0 <= now_ns - self._exported_ns < EVERY_NS

    def export(self, head: Head) -> None:
        """Append the head, whole lines only: a line torn by a crash is ended first."""
        line = f"{head.time_ns} {head.sequence} {head.hash} {head.oldest}\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(("\n" if _torn(self._path) else "").encode() + line.encode())
        except OSError as error:
            if not self.fault:
                self._log.error("anchor_failed", error=str(error))
            self.fault = f"the journal's anchor {self._path.name} cannot be written ({error.strerror})"
            return
        self.fault, self._exported_ns = "", head.time_ns


def read(path: Path) -> list[Head]:
    """Return the anchored heads, oldest first; torn lines are left out. Raises OSError."""
    found = (_LINE.fullmatch(line) for line in path.read_text(encoding="ascii", errors="replace").split("\n"))
    return [
        Head(time_ns=int(m[1]), sequence=int(m[2]), hash=m[3], oldest=int(m[4]))
        for m in found
        if m is not None
    ]


def misfit(heads: Sequence[Head], kept: Kept, now_ns: int) -> int | None:
    """Return the first sequence at which the journal is not the one that was anchored, None when it is.

    Every anchored entry that is kept must have its hash; newer ones than the newest anchored may exist;
    older ones may be gone only as far as retention explains it.
    """
    newest = max(kept.hashes, default=0)
    oldest = min(kept.hashes, default=newest)
    wrong = [
        head.sequence
        for head in heads
        if head.sequence > newest
        or (head.sequence >= max(oldest, 1) and kept.hashes.get(head.sequence) != head.hash)
    ]
    now = Head(time_ns=now_ns, sequence=newest, hash="", oldest=oldest)
    lives = [*heads, now]
    for before, after in pairwise(lives):
        if after.oldest < before.oldest or not _explained(before, after, heads, kept):
            wrong.append(max(after.oldest, 1))
    return min(wrong, default=None)


def _explained(before: Head, after: Head, heads: Sequence[Head], kept: Kept) -> bool:
    """Tell whether retention alone can have moved the oldest kept entry so far between two heads."""
    gone = after.oldest - 1  # the newest entry that is gone
    if after.oldest <= max(before.oldest, 1) or gone <= after.sequence - kept.entries_max:
        return True
    place = bisect_left(heads, gone, key=lambda head: head.sequence)  # heads[place - 1] is older than `gone`
    written_ns = heads[place - 1].time_ns if place else 0
    return written_ns < after.time_ns - kept.keep_ns


def _torn(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            return False
        file.seek(size - 1)
        return file.read(1) != b"\n"
