"""What worker and brain tell each other: msgpack messages with a length before each, over a socketpair.

A frame is a 4-byte little-endian length and one msgpack message. Both ends are ours, and still nothing is
unpickled: a message is decoded into the structs below or refused.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

FRAME_MAX_BYTES: Final = 64 << 20
HEADER: Final = struct.Struct("<I")


class Ready(msgspec.Struct, tag=True, array_like=True):
    """The worker listens on this port."""

    port: int


class NodeUp(msgspec.Struct, tag=True, array_like=True):
    """A live stream began. gpus: uuid, index, model, pci_bus_id, seen."""

    node: str
    boot_id: str
    time_ns: int
    offset_ns: int
    agent_version: str
    gpu_source: str
    note: str
    driver_version: str
    gpus: list[tuple[str, int, str, str, bool]]


class NodeDown(msgspec.Struct, tag=True, array_like=True):
    """The live stream ended."""

    node: str
    time_ns: int


class Series(msgspec.Struct, tag=True, array_like=True):
    """Where a node's series are in the ring. plane, metric, entity, row: int32 bytes, one each a series."""

    node: str
    version: int
    metrics: list[str]
    entities: list[str]
    plane: bytes
    metric: bytes
    entity: bytes
    row: bytes


class Event(msgspec.Struct, tag=True, array_like=True):
    """One accepted event, in the collector's time."""

    node: str
    boot_id: str
    sequence: int
    time_ns: int
    kind: str
    origin: str
    entity: str
    code: int
    text: str
    fields: dict[str, str]
    synthetic: bool


class Steps(msgspec.Struct, tag=True, array_like=True):
    """Steps of one rank's loop. time_ns: int64 [n], the ends in the collector's time; values: float32
    [n, metrics], NaN = absent.
    """

    node: str
    entity: str
    metrics: list[str]
    time_ns: bytes
    values: bytes


class LedgerRow(msgspec.Struct, tag=True, array_like=True):
    """One delivery key's state. delivery_class: metrics or events."""

    node: str
    boot_id: str
    delivery_class: str
    received: int
    durable: int
    duplicates: int
    gap_sequences: int
    refused: dict[str, int]


class Status(msgspec.Struct, tag=True, array_like=True):
    """Once a second: all counters, rows of the ledger that changed, nodes seen since (time, offset)."""

    counters: dict[str, float]
    ledger: list[LedgerRow]
    seen: dict[str, tuple[int, int]]


class Command(msgspec.Struct, tag=True, array_like=True):
    """Down: for the agent of this node. The worker that has its live stream passes it on."""

    node: str
    id: str
    verb: str
    arguments: dict[str, str]
    deadline_ns: int


class Result(msgspec.Struct, tag=True, array_like=True):
    """What an agent made of a command."""

    node: str
    id: str
    accepted: bool
    outcome: str


Message = Ready | NodeUp | NodeDown | Series | Event | Steps | Status | Command | Result

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return one whole frame."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


class FrameReader:
    """Turn chunks of a byte stream into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[Message]:
        """Return the messages that are whole now. Raises msgspec.DecodeError on a frame that is not ours."""
        self._rest += chunk
        messages: list[Message] = []
        start = 0
        while len(self._rest) - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._rest, start)
            if length > FRAME_MAX_BYTES:
                raise msgspec.DecodeError(f"frame of {length} bytes, expected at most {FRAME_MAX_BYTES}")
            end = start + HEADER.size + length
            if end > len(self._rest):
                break
            messages.append(_decoder.decode(bytes(self._rest[start + HEADER.size : end])))
            start = end
        del self._rest[:start]
        return messages
