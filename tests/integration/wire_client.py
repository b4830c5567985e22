"""A well-behaved agent in a hundred lines: the tests' client of the collector's stream.

`Dial` makes a channel; `Wire` is one stream with the agent's duties: it keeps what is not durable yet and
sends it again after a reconnect. Reused by the load generator, which is why it is asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

import grpc

from gpuvigil_protos.codec import SCHEMA_VERSION, blocks_crc, pack_float32
from gpuvigil_protos.v1 import stream_pb2 as pb
from gpuvigil_protos.v1.stream_pb2_grpc import TelemetryServiceStub

SECOND = 1_000_000_000
FAST_SERIES = (
    ("gpu_temperature_celsius", "gpu:GPU-0"),
    ("gpu_power_watts", "gpu:GPU-0"),
    ("node_cpu_utilization_ratio", "node"),
)
SLOW_SERIES = (("gpu_ecc_corrected_volatile_total", "gpu:GPU-0"),)
FAST, SLOW = 1, 2


def dictionary(
    version: int = 1,
    fast: tuple[tuple[str, str], ...] = FAST_SERIES,
    slow: tuple[tuple[str, str], ...] = SLOW_SERIES,
) -> pb.Dictionary:
    """Two groups: `fast` every second, `slow` every ten."""
    groups = [
        pb.Group(
            id=number,
            period_ns=period * SECOND,
            series=[pb.Series(metric=metric, entity=entity) for metric, entity in series],
        )
        for number, period, series in ((FAST, 1, fast), (SLOW, 10, slow))
        if series
    ]
    return pb.Dictionary(version=version, groups=groups)


def block(values: list[float], group: int = FAST, tick_ns: list[int] | None = None) -> pb.Block:
    """One block; one tick of now unless told."""
    return pb.Block(group=group, tick_ns=tick_ns or [time.time_ns()], values=pack_float32(values))


def batch(sequence: int, blocks: list[pb.Block] | None = None, **fields) -> pb.Batch:
    """A batch with the right checksum."""
    blocks = blocks if blocks is not None else [block([50.0, 300.0, 0.5])]
    made = pb.Batch(
        sequence=sequence, dictionary_version=fields.pop("version", 1), blocks=blocks,
        sent_ns=fields.pop("sent_ns", None) or time.time_ns(), crc=blocks_crc(blocks), **fields,
    )  # fmt: skip
    setattr(made, "class", pb.CLASS_METRICS)
    return made


def event(sequence: int, **fields) -> pb.Event:
    """An Xid of now."""
    given = {
        "time_ns": time.time_ns(), "kind": pb.EVENT_KIND_XID, "origin": pb.ORIGIN_KERNEL_LOG,
        "entity": "gpu:GPU-0", "code": 79, "text": "NVRM: Xid: 79", "sent_ns": time.time_ns(), **fields,
    }  # fmt: skip
    return pb.Event(sequence=sequence, **given)


def gap(first: int, last: int, delivery_class: int = pb.CLASS_METRICS, reason: str = "spool_full") -> pb.Gap:
    made = pb.Gap(first=first, last=last, reason=reason, samples=1)
    setattr(made, "class", delivery_class)
    return made


def channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """One connection, not shared with another channel of this process."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 1 << 20)]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


@dataclass
class Wire:
    """One stream. received, durable: newest watermarks by class; refusals as they came."""

    channel: grpc.aio.Channel
    node: str = "n1"
    boot_id: str = "boot-1"
    role: int = pb.ROLE_LIVE
    dictionary: pb.Dictionary | None = field(default_factory=dictionary)
    inventory: pb.Inventory = field(default_factory=pb.Inventory)
    deadline_s: float = 600.0
    clock_shift_ns: int = 0
    received: dict[int, int] = field(default_factory=dict)
    durable: dict[int, int] = field(default_factory=dict)
    refusals: list[pb.Refusal] = field(default_factory=list)
    acks: int = 0
    welcome: pb.Welcome | None = None

    async def open(self, **hello) -> pb.Welcome:
        """Say Hello and wait for Welcome. Raises grpc.aio.AioRpcError when refused."""
        self.call = TelemetryServiceStub(self.channel).Stream(timeout=self.deadline_s)
        fields = {
            "schema_version": SCHEMA_VERSION, "node": self.node, "boot_id": self.boot_id, "role": self.role,
            "inventory": self.inventory, "dictionary": self.dictionary, "agent_version": "test",
            "sent_ns": time.time_ns() + self.clock_shift_ns, **hello,
        }  # fmt: skip
        await self.call.write(pb.StreamRequest(hello=pb.Hello(**fields)))
        await self._take(await self.call.read())
        return self.welcome

    async def send_hello(self, inventory: pb.Inventory) -> None:
        """Say Hello again: the inventory has changed."""
        hello = pb.Hello(
            schema_version=SCHEMA_VERSION, node=self.node, boot_id=self.boot_id, role=self.role,
            inventory=inventory, sent_ns=time.time_ns(),
        )  # fmt: skip
        await self.call.write(pb.StreamRequest(hello=hello))

    async def send(self, message: pb.Batch | pb.Event | pb.Dictionary) -> None:
        names = {pb.Batch: "batch", pb.Event: "event", pb.Dictionary: "dictionary"}
        await self.call.write(pb.StreamRequest(**{names[type(message)]: message}))

    async def next(self, timeout_s: float = 15.0) -> None:
        """Take one answer. Raises AioRpcError when the stream has ended with a status."""
        async with asyncio.timeout(timeout_s):
            await self._take(await self.call.read())

    async def _take(self, reply: pb.StreamResponse | object) -> None:
        if reply is grpc.aio.EOF:
            raise await self.error()
        for name, marks in (("welcome", reply.welcome), ("ack", reply.ack)):
            if reply.WhichOneof("message") == name:
                for mark in marks.watermarks:
                    self.received[getattr(mark, "class")] = mark.received
                    self.durable[getattr(mark, "class")] = mark.durable
        match reply.WhichOneof("message"):
            case "welcome":
                self.welcome = reply.welcome
            case "ack":
                self.acks += 1
            case "refusal":
                self.refusals.append(reply.refusal)

    async def until(self, condition, timeout_s: float = 15.0) -> None:
        """Take answers until `condition(self)` holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                await self._take(await self.call.read())

    async def until_durable(self, sequence: int, delivery_class: int = pb.CLASS_METRICS) -> None:
        await self.until(lambda wire: wire.durable.get(delivery_class, 0) >= sequence)

    async def status(self, timeout_s: float = 15.0) -> tuple[grpc.StatusCode, str]:
        """Wait for the stream's end and return its status."""
        async with asyncio.timeout(timeout_s):
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
        return await self.call.code(), await self.call.details()

    async def error(self) -> Exception:
        return ConnectionError(f"{await self.call.code()}: {await self.call.details()}")

    async def close(self) -> None:
        self.call.cancel()
