"""The worker's end of the socket to the brain."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.dictionary import Dictionary
from gpuvigil_collector.ingest.rows import on_grid

BUFFER_MAX_BYTES: Final = 64 << 20


class BrainLink:
    """Sends frames without waiting; what waits is bounded: statuses are dropped and counted first."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self.statuses_dropped = 0

    async def open(
        self, fd: int, gone: asyncio.Event, on_command: Callable[[frames.Command], None]
    ) -> asyncio.Task[None]:
        """Connect; the task returned hands on commands, and sets `gone` when the brain has closed or died."""
        reader, self._writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
        return asyncio.create_task(_watch(reader, gone, on_command))

    @property
    def full(self) -> bool:
        """Tell whether the brain is so far behind that no more may be taken."""
        return self._waiting() > BUFFER_MAX_BYTES

    def _waiting(self) -> int:
        return self._writer.transport.get_write_buffer_size() if self._writer else 0

    def send(self, message: frames.Message) -> None:
        """Queue one message."""
        if isinstance(message, frames.Status) and self._waiting() > BUFFER_MAX_BYTES // 8:
            self.statuses_dropped += 1
        elif self._writer is not None and not self._writer.is_closing():
            self._writer.write(frames.encode(message))


async def _watch(
    reader: asyncio.StreamReader, gone: asyncio.Event, on_command: Callable[[frames.Command], None]
) -> None:
    whole = frames.FrameReader()
    try:
        while chunk := await reader.read(1 << 16):
            for message in whole.feed(chunk):
                if isinstance(message, frames.Command):
                    on_command(message)
    except ConnectionError:
        pass
    gone.set()


def series_of(node: str, dictionary: Dictionary) -> frames.Series:
    """Return where a node's series are, as the brain's store wants it."""
    names, planes, rows = [], [], []
    for columns in on_grid(dictionary):
        names += columns.series
        planes += [columns.plane] * len(columns.series)
        rows += _numbers(columns.rows)
    metrics = {name: at for at, name in enumerate(dict.fromkeys(metric for metric, _ in names))}
    entities = {name: at for at, name in enumerate(dict.fromkeys(entity for _, entity in names))}
    return frames.Series(
        node,
        dictionary.version,
        list(metrics),
        list(entities),
        np.array(planes, np.int32).tobytes(),
        np.array([metrics[metric] for metric, _ in names], np.int32).tobytes(),
        np.array([entities[entity] for _, entity in names], np.int32).tobytes(),
        np.array(rows, np.int32).tobytes(),
    )


def _numbers(rows: NDArray[np.int32] | slice) -> list[int]:
    if isinstance(rows, slice):
        return list(range(rows.start, rows.stop))
    return [int(row) for row in rows]
