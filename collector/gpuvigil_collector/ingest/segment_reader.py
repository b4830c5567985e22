"""Reading recordings back: the keys that no ledger covers yet, and the newest events for the brain."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from gpuvigil_collector.ingest.ledger import Key
from gpuvigil_collector.ingest.segment_rows import EventRow
from gpuvigil_protos import log

RECENT_NS: Final = 24 * 3600 * 1_000_000_000  # what the longest memory of a rule reaches back
RECENT_MAX: Final = 20_000
RECENT_WITHIN_S: Final = 10.0  # reading is a help, never a reason not to start
_log = log.get("recordings")


def keys(path: Path) -> list[tuple[Key, int]]:
    """Return (key, sequence) of each row. Raises OSError and pa.ArrowException for a file that is damaged."""
    delivery_class = path.name.partition("-")[0]
    table = pq.read_table(path, columns=["node", "boot_id", "sequence"])
    columns = (column.to_pylist() for column in table.columns)
    return [((node, boot, delivery_class), sequence) for node, boot, sequence in zip(*columns, strict=True)]


def recent_events(paths: list[Path], now_ns: int) -> list[EventRow]:
    """Return the events received in the last 24 h, oldest first, at most 20,000.

    paths: event files, oldest first. A file that cannot be read is left out and said; past 10 s the rest is.
    """
    found: list[list[EventRow]] = []
    count = 0
    started = time.monotonic()
    for path in reversed(paths):
        if count >= RECENT_MAX or time.monotonic() - started > RECENT_WITHIN_S:
            _log.warning("events_not_read_back", older_than=path.name, read=count)
            break
        try:
            if path.stat().st_mtime_ns < now_ns - RECENT_NS:
                break
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            _log.error("recording_unreadable", path=str(path), error=str(error))
            continue
        found.append([EventRow(**row) for row in rows if row["received_ns"] >= now_ns - RECENT_NS])
        count += len(found[-1])
    return [row for rows in reversed(found) for row in rows][-RECENT_MAX:]
