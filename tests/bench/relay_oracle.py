"""A gRPC relay between agents and the collector that notes what was said: the oracle outside both processes.

It forwards bytes unchanged. From agents it notes every batch and event with its checksum; from the collector
every durable watermark and refusal. `judge` then compares that with what the recordings give back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from integration.ingest_host import recorded

from gpuvigil_protos.v1 import stream_pb2 as pb

_METHOD = "/gpuvigil_protos.v1.TelemetryService/Stream"
_NAMES = {pb.CLASS_METRICS: "metrics", pb.CLASS_EVENTS: "events"}
Key = tuple[str, str, str]


@dataclass
class Relay:
    """sent: (node, boot, class) -> sequence -> checksums seen (an event: its code). durable: watermarks."""

    upstream: str
    sent: dict[Key, dict[int, set[int]]] = field(default_factory=lambda: defaultdict(dict))
    durable: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    refused: dict[Key, set[int]] = field(default_factory=lambda: defaultdict(set))
    duplicates: int = 0

    async def start(self) -> str:
        """Listen on a free loopback port; returns the address for the agents."""
        self._server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        service = "gpuvigil_protos.v1.TelemetryService"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Stream": handler}),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        await self._server.stop(1)

    async def _stream(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.upstream, options=options) as channel:
            call = channel.stream_stream(_METHOD)(timeout=3600)
            speaker: list[str] = []
            up = asyncio.create_task(self._up(requests, call, speaker))
            try:
                with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    while (reply := await call.read()) is not grpc.aio.EOF:
                        self._note_reply(speaker, pb.StreamResponse.FromString(reply))
                        await context.write(reply)
                await context.abort(await call.code() or grpc.StatusCode.UNAVAILABLE, await call.details())
            finally:
                up.cancel()
                call.cancel()

    async def _up(self, requests: object, call: grpc.aio.StreamStreamCall, speaker: list[str]) -> None:
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.BaseError):
            async for data in requests:
                self._note_request(speaker, pb.StreamRequest.FromString(data))
                await call.write(data)
            await call.done_writing()

    def _note_request(self, speaker: list[str], request: pb.StreamRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "hello":
            speaker[:] = [request.hello.node, request.hello.boot_id]
        elif kind in ("batch", "event"):
            message = getattr(request, kind)
            name, check = ("metrics", message.crc) if kind == "batch" else ("events", message.code)
            seen = self.sent[speaker[0], speaker[1], name].setdefault(message.sequence, set())
            self.duplicates += bool(seen)
            seen.add(check)

    def _note_reply(self, speaker: list[str], reply: pb.StreamResponse) -> None:
        kind = reply.WhichOneof("message")
        if kind in ("welcome", "ack"):
            for mark in getattr(reply, kind).watermarks:
                key = (speaker[0], speaker[1], _NAMES[getattr(mark, "class")])
                self.durable[key] = max(self.durable[key], mark.durable)
        elif kind == "refusal":
            key = (speaker[0], speaker[1], _NAMES[getattr(reply.refusal, "class")])
            self.refused[key].add(reply.refusal.sequence)

    @property
    def in_flight(self) -> int:
        """Return how many messages are sent and not acknowledged as durable."""
        return sum(
            sequence > self.durable[key] for key, sequences in self.sent.items() for sequence in sequences
        )

    def judge(self, recordings: Path) -> dict[str, int]:
        """Count what was acknowledged, lost, doubled, and sequences that were used for two contents."""
        found = recorded(recordings)
        there = {key[:4]: key[4] for key in found}
        acknowledged = lost = reused = 0
        for key, sequences in self.sent.items():
            for sequence, checks in sequences.items():
                reused += len(checks) > 1
                if sequence <= self.durable[key] and sequence not in self.refused[key]:
                    acknowledged += 1
                    lost += there.get((*key, sequence)) not in checks
        doubled = sum(count > 1 for count in found.values())
        return {"acknowledged": acknowledged, "lost": lost, "doubled": doubled, "reused": reused}
