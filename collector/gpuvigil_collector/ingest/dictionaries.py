"""The dictionaries that recordings refer to: JSON files named by their SHA-256, shared by all workers.

A dictionary that is in use is touched now and then; one that nobody has touched for hours and no recording
names is deleted. Between the two a rename decides, so that no worker's segment ever loses its dictionary.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpuvigil_collector.ingest import segment_names
from gpuvigil_collector.ingest.files import put, sync_folder

TOUCH_EVERY_S: Final = 600.0
UNUSED_S: Final = 2 * 3600.0
_SYNCS_AT_ONCE: Final = (
    8  # a file system commits syncs that wait together at once: 3,000 nodes take 1 s, not 8
)
_GONE: Final = ".gone"


class Dictionaries:
    """One worker's view of the folder. Every method may raise OSError."""

    def __init__(self, recordings: Path) -> None:
        self._recordings = recordings
        self._folder = recordings / "dictionaries"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._touched: dict[str, float] = {}
        self._unsynced = False  # whether a name is in the folder that a power cut may take

    def keep(self, dictionaries: dict[str, bytes]) -> None:
        """Have these on disk: when it returns, segments may refer to them."""
        now = time.monotonic()
        due = [one for one in dictionaries if now - self._touched.get(one, -TOUCH_EVERY_S) >= TOUCH_EVERY_S]
        if not due:
            return
        with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
            for _ in pool.map(lambda digest: self._put(digest, dictionaries[digest]), due):
                pass
        if self._unsynced:
            sync_folder(self._folder)
            self._unsynced = False
        self._touched.update(dict.fromkeys(due, now))

    def _put(self, digest: str, text: bytes) -> None:
        path = self._folder / f"{digest}.json"
        try:
            os.utime(path)
        except FileNotFoundError:
            put(path, lambda file: file.write(text), lambda: None)
            self._unsynced = True

    def sweep(self, now_s: float) -> int:
        """Delete what no recording of any worker names; return how many went. Reads all recordings' names."""
        self._restore_left_over()
        old = {path.stem: path for path in self._folder.glob("*.json") if _age_s(path, now_s) > UNUSED_S}
        if not old:
            return 0
        counting, _ = segment_names.split(self._recordings.glob("metrics-*.parquet"))
        unused = old.keys() - _used(counting)
        return sum(self._delete(old[digest], now_s) for digest in unused)

    def _delete(self, path: Path, now_s: float) -> bool:
        gone = path.with_suffix(_GONE)
        path.rename(gone)
        if _age_s(gone, now_s) > UNUSED_S:
            gone.unlink()
            return True
        gone.rename(path)  # touched between the look and the rename: it is in use again
        return False

    def _restore_left_over(self) -> None:
        for gone in self._folder.glob(f"*{_GONE}"):
            gone.rename(gone.with_suffix(".json"))


def _age_s(path: Path, now_s: float) -> float:
    return now_s - path.stat().st_mtime


def _used(paths: Iterable[Path]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        try:
            column = pq.read_table(path, columns=["dictionary_hash"])["dictionary_hash"]
        except FileNotFoundError:  # the quota took it
            continue
        found.update(pc.unique(column).to_pylist())
    return found
