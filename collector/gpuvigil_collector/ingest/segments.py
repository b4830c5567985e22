"""Recording segments: Parquet files that are whole or not there, and within a quota.

A segment is written beside its name, fsynced, renamed, and its folder fsynced; only then may a ledger say
that what it holds is durable. Metrics: one row a block of a batch, values as the agent sent them, so that
the batch's checksum can be checked again (readers take out what is outside the catalogue's range). Events:
one row each. Dictionaries are JSON files named by their SHA-256, on disk before a segment refers to them.
"""

from __future__ import annotations

import functools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpuvigil_collector.ingest.hooks import BEFORE_SEGMENT_FSYNC, Hook
from gpuvigil_collector.ingest.ledger import Key

_NAME: Final = re.compile(r"(?P<kind>metrics|events)-(?P<worker>\d{2})-(?P<number>\d{12})\.parquet\Z")
_TEMPORARY: Final = ".tmp"


class MetricRow(NamedTuple):
    """One block of a batch. block counts from 0; a batch without blocks is one row with blocks = 0."""

    node: str
    boot_id: str
    sequence: int
    crc: int
    role: str
    block: int
    blocks: int
    dictionary_hash: str
    group: int
    received_ns: int
    tick_ns: Sequence[int]
    values: bytes


class EventRow(NamedTuple):
    """One event as it came, its text escaped."""

    node: str
    boot_id: str
    sequence: int
    role: str
    time_ns: int
    received_ns: int
    kind: str
    origin: str
    entity: str
    code: int
    text: str
    fields: list[tuple[str, str]]
    synthetic: bool


_METRIC_HEAD: Final = pa.schema(
    [
        ("node", pa.string()), ("boot_id", pa.string()), ("sequence", pa.int64()), ("crc", pa.uint32()),
        ("role", pa.string()), ("block", pa.int32()), ("blocks", pa.int32()),
        ("dictionary_hash", pa.string()), ("group", pa.int64()), ("received_ns", pa.int64()),
    ]
)  # fmt: skip
_EVENT_SCHEMA: Final = pa.schema(
    [
        ("node", pa.string()), ("boot_id", pa.string()), ("sequence", pa.int64()), ("role", pa.string()),
        ("time_ns", pa.int64()), ("received_ns", pa.int64()), ("kind", pa.string()), ("origin", pa.string()),
        ("entity", pa.string()), ("code", pa.int64()), ("text", pa.string()),
        ("fields", pa.map_(pa.string(), pa.string())), ("synthetic", pa.bool_()),
    ]
)  # fmt: skip
_STRINGS: Final = ["node", "boot_id", "role", "dictionary_hash", "kind", "origin", "entity"]


@dataclass(slots=True)
class Unit:
    """What one flush makes durable together. Its number stays the same over retries."""

    number: int
    metrics: list[MetricRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    dictionaries: dict[str, bytes] = field(default_factory=dict)


class Segments:
    """One worker's segment files. Every method may raise OSError (disk full, gone, read-only)."""

    def __init__(self, directory: Path, worker: int, quota_bytes: int, hook: Hook) -> None:
        self._directory = directory
        self._worker = worker
        self._quota_bytes = quota_bytes
        self._hook = hook
        self._dictionaries = directory / "dictionaries"
        self._dictionaries.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        self._files: deque[tuple[Path, int]] = deque((path, path.stat().st_size) for path in self._own())
        self._written_dictionaries = {path.stem for path in self._dictionaries.glob("*.json")}
        self.bytes = sum(size for _, size in self._files)
        self.deleted = 0

    def _own(self, after: int = 0) -> list[Path]:
        found = []
        for path in self._directory.glob(f"*-{self._worker:02}-*.parquet"):
            name = _NAME.match(path.name)
            if name is not None and int(name["number"]) > after:
                found.append((name["number"], path))
        return [path for _, path in sorted(found)]

    def _remove_unfinished(self) -> None:
        for path in self._directory.glob(f"*-{self._worker:02}-*{_TEMPORARY}"):
            path.unlink(missing_ok=True)

    def newest(self) -> int:
        """Return the newest number on disk, 0 for none."""
        names = (_NAME.match(path.name) for path in self._own())
        return max((int(name["number"]) for name in names if name), default=0)

    def write(self, unit: Unit) -> None:
        """Put the unit on disk, dictionaries first. When it returns, all of it is there after a power cut."""
        for digest, text in unit.dictionaries.items():
            if digest not in self._written_dictionaries:
                self._put(self._dictionaries / f"{digest}.json", functools.partial(_write_bytes, text))
                self._written_dictionaries.add(digest)
        if unit.dictionaries:
            _sync_folder(self._dictionaries)
        if unit.metrics:
            self._segment("metrics", unit.number, metric_table(unit.metrics))
        if unit.events:
            self._segment("events", unit.number, event_table(unit.events))
        _sync_folder(self._directory)
        self._enforce_quota()

    def _segment(self, kind: str, number: int, table: pa.Table) -> None:
        path = self._directory / f"{kind}-{self._worker:02}-{number:012}.parquet"
        strings = [name for name in _STRINGS if name in table.column_names]

        def write(file: Any) -> None:
            pq.write_table(table, file, compression="zstd", use_dictionary=strings, write_statistics=False)

        size = self._put(path, write)
        self._files.append((path, size))
        self.bytes += size

    def _put(self, path: Path, write: Callable[[Any], object]) -> int:
        temporary = path.with_name(path.name + _TEMPORARY)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            self._hook(BEFORE_SEGMENT_FSYNC)
            os.fsync(file.fileno())
            size = file.tell()
        temporary.rename(path)
        return size

    def _enforce_quota(self) -> None:
        while self.bytes > self._quota_bytes and len(self._files) > 1:
            path, size = self._files.popleft()
            path.unlink(missing_ok=True)
            self.bytes -= size
            self.deleted += 1

    def keys_after(self, number: int) -> Iterable[tuple[Key, int]]:
        """Yield (key, sequence) of the rows in segments newer than `number`, which no ledger covers."""
        for path in self._own(after=number):
            delivery_class = path.name.partition("-")[0]
            table = pq.read_table(path, columns=["node", "boot_id", "sequence"])
            for node, boot, sequence in zip(*(column.to_pylist() for column in table.columns), strict=True):
                yield (node, boot, delivery_class), sequence


def _write_bytes(data: bytes, file: Any) -> None:
    file.write(data)


def metric_table(rows: list[MetricRow]) -> pa.Table:
    """Return the rows as columns; ticks and values become lists without a Python object a sample."""
    *head, ticks, values = zip(*rows, strict=True)
    columns = [pa.array(column, kind.type) for column, kind in zip(head, _METRIC_HEAD, strict=True)]
    tick_counts = np.fromiter(map(len, ticks), np.int64, len(ticks))
    flat_ticks = np.fromiter((tick for row in ticks for tick in row), np.int64, int(tick_counts.sum()))
    value_bytes = np.fromiter(map(len, values), np.int64, len(values))
    flat_values = pa.array(np.frombuffer(b"".join(values), "<f4"))
    columns.append(pa.ListArray.from_arrays(_offsets(tick_counts), pa.array(flat_ticks)))
    columns.append(pa.ListArray.from_arrays(_offsets(value_bytes // 4), flat_values))
    return pa.Table.from_arrays(columns, names=[*_METRIC_HEAD.names, "tick_ns", "values"])


def event_table(rows: list[EventRow]) -> pa.Table:
    """Return the events as columns."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _EVENT_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=_EVENT_SCHEMA)


def _offsets(counts: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())


def _sync_folder(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
