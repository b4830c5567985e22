"""What a recording's rows are, and rows as Parquet tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa


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
    clock_offset_ns: int = 0  # to add to time_ns for the collector's time


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
        ("clock_offset_ns", pa.int64()),
    ]
)  # fmt: skip
STRINGS: Final = ["node", "boot_id", "role", "dictionary_hash", "kind", "origin", "entity"]


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
