"""Many small recordings become one: which parts are merged, and how, in bounded memory.

A merged file is renamed into place, synced, and only then are its parts deleted; its name covers theirs, so
after a crash in between every row still counts once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gpuvigil_collector.ingest import segment_names
from gpuvigil_collector.ingest.segment_rows import STRINGS

GROUP_BYTES: Final = 16 << 20
GROUP_FILES: Final = 512
PART_BYTES: Final = 4 << 20  # a part this large is left as it is
_ROW_GROUP_BYTES: Final = 8 << 20


class File(NamedTuple):
    """A recording on disk."""

    path: Path
    size: int
    name: segment_names.Name


def choose(files: Iterable[File], committed: int, is_old: Callable[[File], bool]) -> list[File]:
    """Return a run of neighbouring parts that are worth a merge, oldest first; empty when there is none.

    files: one kind's, oldest first. committed: parts of later flushes may still be written again. A run is
    worth it when it is full, or when its first part is old.
    """
    run: list[File] = []
    for file in files:
        if file.name.merged or file.size > PART_BYTES or file.name.last > committed:
            if len(run) > 1 and is_old(run[0]):
                return run
            run = []
            continue
        run.append(file)
        if len(run) >= GROUP_FILES or sum(one.size for one in run) >= GROUP_BYTES:
            return run
    return run if len(run) > 1 and is_old(run[0]) else []


def write(parts: Iterable[Path], file: Any) -> None:
    """Write the parts' rows, in order, into one Parquet file. Raises OSError and pa.ArrowException."""
    with contextlib.ExitStack() as closing:
        writer: pq.ParquetWriter | None = None
        waiting: list[pa.Table] = []
        for path in parts:
            waiting.append(pq.read_table(path))
            if writer is None:
                writer = closing.enter_context(_writer(file, waiting[0].schema))
            if sum(table.nbytes for table in waiting) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if writer is not None and waiting:
            writer.write_table(pa.concat_tables(waiting))


def _writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    strings = [name for name in STRINGS if name in schema.names]
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=strings, write_statistics=False)
