"""The oracle of the kill -9 tests: outside both processes, it believes what was said and what is on disk.

It is the sending side's notebook: every batch sent, and every watermark that the collector said. At the end
it reads the recordings and compares: what was acknowledged as durable must be there, once, with its checksum.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from integration.ingest_host import recorded
from integration.wire_client import Wire, batch, channel, event

from gpuvigil_protos.v1 import stream_pb2 as pb


@dataclass
class Verdict:
    """lost: acknowledged as durable and not there. doubled: there more than once. acknowledged: how many."""

    lost: list[tuple]
    doubled: list[tuple]
    acknowledged: int

    @property
    def clean(self) -> bool:
        return not self.lost and not self.doubled


@dataclass
class Sender:
    """One node that never gives up: it keeps what is not durable and sends it again after each reconnect."""

    node: str
    pause_s: float = 0.01
    sent: dict[tuple[str, int], pb.Batch | pb.Event] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=lambda: {"metrics": 0, "events": 0})
    next: dict[str, int] = field(default_factory=lambda: {"metrics": 1, "events": 1})
    reconnects: int = 0
    stopping: bool = False

    @property
    def in_flight(self) -> int:
        """Return how many batches are sent and not yet durable."""
        return self.next["metrics"] - 1 - self.durable["metrics"]

    async def run(self, address: str) -> None:
        """Send until told to stop, and then until all is durable."""
        while not self.stopping or self.in_flight or self.durable["events"] < self.next["events"] - 1:
            with contextlib.suppress(
                grpc.aio.AioRpcError,
                grpc.aio.BaseError,
                ConnectionError,
                asyncio.InvalidStateError,
                TimeoutError,
            ):
                await self._stream(address)
            self.reconnects += 1
            await asyncio.sleep(0.05)

    async def _stream(self, address: str) -> None:
        async with channel(address) as dial:
            wire = Wire(dial, node=self.node)
            async with asyncio.timeout(5):
                await wire.open()
            self._note(wire)
            reader = asyncio.create_task(self._read(wire))
            try:
                for (name, sequence), message in list(self.sent.items()):
                    if sequence > self.durable[name]:
                        await wire.send(message)
                while not reader.done():
                    if not self.stopping:
                        await self._send_new(wire)
                    elif not self.in_flight:
                        return
                    await asyncio.sleep(self.pause_s)
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def _send_new(self, wire: Wire) -> None:
        name = (
            "events"
            if self.next["metrics"] % 20 == 0 and self.next["events"] * 20 <= self.next["metrics"]
            else "metrics"
        )
        sequence = self.next[name]
        message = batch(sequence) if name == "metrics" else event(sequence)
        self.next[name] += 1
        self.sent[name, sequence] = message
        await wire.send(message)

    async def _read(self, wire: Wire) -> None:
        while True:
            await wire.next(timeout_s=30)
            self._note(wire)

    def _note(self, wire: Wire) -> None:
        for name, number in (("metrics", pb.CLASS_METRICS), ("events", pb.CLASS_EVENTS)):
            self.durable[name] = max(self.durable[name], wire.durable.get(number, 0))


def judge(senders: list[Sender], recordings: Path) -> Verdict:
    """Compare what was acknowledged with what reads back."""
    found = recorded(recordings)
    acknowledged = Counter(
        (sender.node, "boot-1", name, sequence, message.crc if name == "metrics" else message.code)
        for sender in senders
        for (name, sequence), message in sender.sent.items()
        if sequence <= sender.durable[name]
    )
    return Verdict(
        lost=sorted(set(acknowledged) - set(found)),
        doubled=sorted(key for key, count in found.items() if count > 1),
        acknowledged=len(acknowledged),
    )
