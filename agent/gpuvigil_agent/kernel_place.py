"""How far the kernel log was read, kept over restarts: what is logged meanwhile is read after the start.

At most 10 minutes back; written by a thread at most every 2 s, so that a hung disk holds up no tick. A crash
repeats what was read since the last write, for a line told twice is better than a line never told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Final

import msgspec

BACK_NS: Final = 600_000_000_000
_SAVE_S: Final = 2.0
_CURSOR_MAX: Final = 500


class Place(msgspec.Struct):
    """The last record that was dealt with: its journal cursor or its number in the kernel's ring, its time.

    `known` is false on a node that has never read: there, reading begins with what comes.
    """

    boot_id: str = ""
    cursor: str = ""
    sequence: int = -1
    time_ns: int = 0
    known: bool = False

    def pass_by(self, sequence: int, time_ns: int, cursor: str = "") -> None:
        """Note a record as dealt with."""
        self.sequence, self.time_ns, self.cursor = sequence, time_ns, cursor

    def journal_start(self, now_ns: int) -> tuple[str, ...]:
        """Return journalctl's options for where to begin."""
        if not self.known:
            return ("--lines=0",)
        if self.cursor and now_ns - self.time_ns < BACK_NS:
            return ("--no-tail", f"--after-cursor={self.cursor}")
        return ("--no-tail", f"--since=@{(now_ns - BACK_NS) // 1_000_000_000}")


class PlaceFile:
    """The place on disk; a file that cannot be read or written is as none."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self.place = self._load()
        if self.place.boot_id != boot_id:  # the ring began anew; the journal's cursor goes on
            self.place.boot_id, self.place.sequence = boot_id, -1
        self._saved = msgspec.json.encode(self.place)
        self._next_s = 0.0
        self._writing: asyncio.Future[None] | None = None

    def _load(self) -> Place:
        try:
            place = msgspec.json.decode(self._path.read_bytes()[:4096], type=Place)
        except (OSError, msgspec.MsgspecError):
            return Place()
        good = place.cursor.isprintable() and len(place.cursor) <= _CURSOR_MAX
        return place if good else Place()

    def save(self, *, now: bool = False) -> None:
        """Write in a thread, when it has changed and it is time; never wait."""
        if (not now and time.monotonic() < self._next_s) or (self._writing and not self._writing.done()):
            return
        self.place.known = True
        text = msgspec.json.encode(self.place)
        if text == self._saved:
            return
        self._saved, self._next_s = text, time.monotonic() + _SAVE_S
        with contextlib.suppress(RuntimeError):  # no thread to be had: the next save may find one
            self._writing = asyncio.get_running_loop().run_in_executor(None, _write, self._path, text)


def _write(path: Path, text: bytes) -> None:
    """Replace the file whole, so that a crash leaves the old or the new one."""
    draft = path.with_suffix(".new")
    with contextlib.suppress(OSError):
        draft.write_bytes(text)
        draft.replace(path)
