"""One stream of the collector whose messages are written one at a time.

Source: grpc.aio ends a stream with INTERNAL ("Internal error from Core") when two writes of one call overlap,
and an answer to a command would overlap the batch that is being written.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc


class Call:
    """A grpc.aio.StreamStreamCall, whose stubs say nothing of its messages, with writers in a row."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._writing = asyncio.Lock()

    async def write(self, message: Any) -> None:
        """Write after whoever writes now. Raises asyncio.InvalidStateError when the stream has ended."""
        async with self._writing:
            await self._raw.write(message)

    async def read(self) -> Any:
        """Return the next answer, or grpc.aio.EOF. Raises AioRpcError."""
        return await self._raw.read()

    async def code(self) -> grpc.StatusCode:
        """Return the status once the stream has ended."""
        status: grpc.StatusCode = await self._raw.code()
        return status

    async def details(self) -> str:
        """Return the status's text once the stream has ended."""
        return str(await self._raw.details() or "")

    def cancel(self) -> None:
        """End the stream now."""
        self._raw.cancel()
