"""A stream's first words: Welcome before all else, and one write at a time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.ledger import Delivery
from gpuvigil_collector.ingest.service import Received, Service
from gpuvigil_collector.ingest.session import Session
from gpuvigil_protos.codec import SCHEMA_VERSION
from gpuvigil_protos.v1 import stream_pb2 as pb


class _Admission:
    """Lets one stream in."""

    def __init__(self) -> None:
        self.session = Session(
            node="n1", boot_id="b1", role="live", peer="ipv4:127.0.0.1", metrics=Delivery(), events=Delivery()
        )

    def admit(self, *_: object) -> Session:
        return self.session

    def leave(self, _session: Session) -> bool:
        return True


class _EagerBrain:
    """A brain that has a command ready as soon as it hears of the node."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def send(self, message: frames.Message) -> None:
        if isinstance(message, frames.NodeUp):
            self._session.command(pb.Command(id="r1", verb="save"))


class _Intake:
    counters: dict[str, float] = {}


class _SlowContext:
    """A stream whose writes take a moment; it refuses a second write meanwhile, as gRPC does."""

    def __init__(self) -> None:
        hello = pb.Hello(
            schema_version=SCHEMA_VERSION, node="n1", boot_id="b1", role=pb.ROLE_LIVE, sent_ns=time.time_ns()
        )
        self._coming = [Received(10, pb.StreamRequest(hello=hello))]
        self._writing = False
        self.written: list[str] = []
        self.enough = asyncio.Event()

    async def read(self) -> Any:
        if self._coming:
            return self._coming.pop()
        await self.enough.wait()
        return None

    async def write(self, message: pb.StreamResponse) -> None:
        assert not self._writing, "a second write while the first is under way"
        self._writing = True
        await asyncio.sleep(0.02)
        self._writing = False
        self.written.append(str(message.WhichOneof("message")))
        if message.HasField("ack"):
            self.enough.set()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:4711"

    def auth_context(self) -> dict[str, Any]:
        return {}


async def test_a_command_that_waits_before_the_welcome_comes_after_it() -> None:
    admission, context = _Admission(), _SlowContext()
    service: Any = Service(admission, _Intake(), _EagerBrain(admission.session), "worker-0")  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await service._stream(None, context)
    assert context.written == ["welcome", "command", "ack"]
