"""Recording segments: Parquet files that are whole or not there, within a quota, few in the end.

Only when a segment is on disk may a ledger say that what it holds is durable. Metrics: one row a block of a
batch, values as the agent sent them, so that the batch's checksum can be checked again (readers take out
what is outside the catalogue's range). Events: one row each. Small segments are merged off the hot path.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from gpuvigil_collector.ingest import merging, segment_names, segment_reader
from gpuvigil_collector.ingest.dictionaries import Dictionaries
from gpuvigil_collector.ingest.files import TEMPORARY, put, sync_folder
from gpuvigil_collector.ingest.hooks import (
    AFTER_MERGED_RENAME,
    BEFORE_MERGED_FSYNC,
    BEFORE_SEGMENT_FSYNC,
    BETWEEN_PARTS_DELETED,
    Hook,
)
from gpuvigil_collector.ingest.ledger import Key
from gpuvigil_collector.ingest.merging import File
from gpuvigil_collector.ingest.segment_rows import STRINGS, EventRow, MetricRow, event_table, metric_table
from gpuvigil_protos import log

_MERGE_SHARE: Final = 4  # a merge needs its parts' size twice for a moment: at most this part of the quota
BROKEN: Final = ".broken"  # no reader takes such a file for a segment
_log = log.get("recordings")


@dataclass(slots=True)
class Unit:
    """What one flush makes durable together. Its number stays the same over retries."""

    number: int
    metrics: list[MetricRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    dictionaries: dict[str, bytes] = field(default_factory=dict)


class Segments:
    """One worker's files. One thread may write, another merge. Methods may raise OSError (disk full)."""

    def __init__(self, directory: Path, worker: int, quota_bytes: int, hook: Hook) -> None:
        self._directory = directory
        self._worker = worker
        self._quota_bytes = quota_bytes
        self._hook = hook
        self.dictionaries = Dictionaries(directory)
        self._lock = threading.Lock()  # over _files and bytes; no reading or writing of files under it
        self._unreadable: set[Path] = set()
        counting = self._clean_up()
        self._files = [_file(path, path.stat().st_size) for path in counting]
        self.bytes = sum(file.size for file in self._files)
        self.deleted = 0

    def _clean_up(self) -> list[Path]:
        """Finish what a crash left: unfinished files and merged parts go. Return the files that count."""
        for path in self._directory.glob(f"*-{self._worker:02}-*{TEMPORARY}"):
            path.unlink(missing_ok=True)
        counting, superseded = segment_names.split(self._directory.glob(f"*-{self._worker:02}-*.parquet"))
        for path in superseded:
            path.unlink(missing_ok=True)
        return counting

    def newest(self) -> int:
        """Return the newest flush's number on disk, 0 for none."""
        return max((file.name.last for file in self._files), default=0)

    @property
    def count(self) -> int:
        """Return how many files there are."""
        return len(self._files)

    def write(self, unit: Unit) -> None:
        """Put the unit on disk, dictionaries first. When it returns, all of it is there after a power cut."""
        self.dictionaries.keep(unit.dictionaries)
        if unit.metrics:
            self._segment("metrics", unit.number, metric_table(unit.metrics))
        if unit.events:
            self._segment("events", unit.number, event_table(unit.events))
        sync_folder(self._directory)
        self._enforce_quota(self._quota_bytes)

    def _segment(self, kind: str, number: int, table: pa.Table) -> None:
        path = self._directory / segment_names.part(kind, self._worker, number)
        strings = [name for name in STRINGS if name in table.column_names]

        def write(file: Any) -> None:
            pq.write_table(table, file, compression="zstd", use_dictionary=strings, write_statistics=False)

        size = put(path, write, lambda: self._hook(BEFORE_SEGMENT_FSYNC))
        with self._lock:
            self._replace([file for file in self._files if file.path == path], _file(path, size))

    def _replace(self, old: list[File], new: File) -> None:
        gone = set(old)
        kept = [file for file in self._files if file not in gone] if gone else self._files
        self._files = [*kept, new]
        if gone:
            self._files.sort(key=lambda file: file.name)
        self.bytes += new.size - sum(file.size for file in old)

    def _enforce_quota(self, room_bytes: int) -> None:
        while True:
            with self._lock:
                if self.bytes <= room_bytes or len(self._files) <= 1:
                    return
                file = self._files.pop(0)
                self.bytes -= file.size
                self.deleted += 1
            file.path.unlink(missing_ok=True)

    def merge(self, committed: int, older_than_s: float) -> bool:
        """Merge one run of small segments of flushes up to `committed`; False when there is none to merge.

        One call at a time. Parts that cannot be read are left alone from then on. Raises OSError.
        """
        group = self._choose(committed, older_than_s)
        total = sum(file.size for file in group)
        if not group or total * _MERGE_SHARE > self._quota_bytes:
            return False
        self._enforce_quota(self._quota_bytes - total)
        first, last = group[0].name, group[-1].name
        path = self._directory / segment_names.merged(first.kind, self._worker, first.first, last.last)
        size = self._put_merged(path, group)
        if not size:
            return False
        sync_folder(self._directory)
        self._hook(AFTER_MERGED_RENAME)
        self._take_place(group, _file(path, size))
        return True

    def _put_merged(self, path: Path, group: list[File]) -> int:
        """Write the merged file; 0 when a part is gone or unreadable."""

        def write(file: Any) -> None:
            merging.write((part.path for part in group), file)

        try:
            return put(path, write, lambda: self._hook(BEFORE_MERGED_FSYNC))
        except (OSError, pa.ArrowException) as error:
            path.with_name(path.name + TEMPORARY).unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):  # the quota took it
                return 0
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self._unreadable.update(part.path for part in group)
            _log.error("recordings_not_merged", first=group[0].path.name, parts=len(group), error=str(error))
            return 0

    def _choose(self, committed: int, older_than_s: float) -> list[File]:
        def is_old(file: File) -> bool:
            with contextlib.suppress(FileNotFoundError):  # the quota took it
                return time.time() - file.path.stat().st_mtime >= older_than_s
            return False

        with self._lock:
            files = [file for file in self._files if file.path not in self._unreadable]
        runs = (
            merging.choose((file for file in files if file.name.kind == kind), committed, is_old)
            for kind in segment_names.KINDS
        )
        return next((run for run in runs if run), [])

    def _take_place(self, group: list[File], whole: File) -> None:
        with self._lock:
            still = set(self._files)
            self._replace([part for part in group if part in still], whole)
        for part in group:
            part.path.unlink(missing_ok=True)
            self._hook(BETWEEN_PARTS_DELETED)
        sync_folder(self._directory)

    def keys_after(self, number: int) -> Iterator[tuple[Key, int]]:
        """Yield (key, sequence) of the rows in segments newer than `number`, which no ledger covers.

        A damaged one is set aside: nothing of it was ever called durable, so its agents send it again.
        """
        for file in [file for file in self._files if file.name.last > number]:
            try:
                found = segment_reader.keys(file.path)
            except (OSError, pa.ArrowException) as error:
                self._set_aside(file, error)
            else:
                yield from found

    def _set_aside(self, file: File, error: Exception) -> None:
        aside = file.path.with_name(file.path.name + BROKEN)
        file.path.replace(aside)
        with self._lock:
            self._files.remove(file)
            self.bytes -= file.size
        _log.error("recording_damaged", path=str(file.path), set_aside=str(aside), error=str(error))

    def recent_events(self) -> list[EventRow]:
        """Return the newest recorded events, oldest first; see segment_reader."""
        paths = [file.path for file in self._files if file.name.kind == "events"]
        return segment_reader.recent_events(paths, time.time_ns())


def _file(path: Path, size: int) -> File:
    name = segment_names.parse(path)
    assert name is not None, path
    return File(path, size, name)
