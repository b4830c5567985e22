"""What agent and driver process say to each other: msgpack frames, each after its length in four bytes.

Down go Begin, then a Tick a second, then Stop. Up come Inventory, Answer (one a Tick), Happened and Ended.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gpuvigil_agent.config import Simulate

FRAME_BYTES_MAX: Final = 4 << 20


class Begin(msgspec.Struct, tag="begin", frozen=True):
    """Which driver to speak to, and the bound on calls a second."""

    simulated: bool
    node: str
    simulate: Simulate
    calls_per_second_max: int


class Tick(msgspec.Struct, tag="tick", frozen=True):
    """Read what is due. skip: indices that no thread may touch (a GPU that hung the last process)."""

    number: int
    time_ns: int
    skip: list[int] = []


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Let go of every GPU and end."""


class GpuInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU of the inventory. seen is False when the node had it and it is gone."""

    uuid: str
    index: int
    model: str
    pci_bus_id: str
    seen: bool = True


class Inventory(msgspec.Struct, tag="inventory", frozen=True):
    """The GPUs that answer. complete is False while some index has not been opened yet."""

    driver_version: str
    gpus: list[GpuInfo]
    complete: bool


class Stuck(msgspec.Struct, frozen=True):
    """A call that has not returned. entity: `gpu:<uuid>`, `node` (index -1), or empty: known by index."""

    entity: str
    index: int
    call: str
    seconds: float


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """What was there in time: entity -> metric -> value; which calls hang; totals of this process."""

    number: int
    readings: dict[str, dict[str, float]]
    stuck: list[Stuck]
    counters: dict[str, int]


class Happened(msgspec.Struct, tag="happened", frozen=True):
    """A fact at its instant: kind is `xid` (code) or `gpu_lost` (call)."""

    time_ns: int
    kind: str
    uuid: str
    code: int = 0
    call: str = ""


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """The process ends by itself: there is no driver to speak to, or not any more."""

    reason: str


Down = Begin | Tick | Stop
Up = Inventory | Answer | Happened | Ended
_encoder = msgspec.msgpack.Encoder()
_down: msgspec.msgpack.Decoder[Down] = msgspec.msgpack.Decoder(Down)
_up: msgspec.msgpack.Decoder[Up] = msgspec.msgpack.Decoder(Up)


class BadFrameError(Exception):
    """The other side sent what no frame is."""


def encode(frame: Down | Up) -> bytes:
    """Return length and frame as bytes."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(4, "little") + body


def decode_down(body: bytes) -> Down:
    """Read a frame for the driver process. Raises BadFrameError."""
    try:
        return _down.decode(body)
    except msgspec.MsgspecError as error:
        raise BadFrameError(str(error)) from None


def decode_up(body: bytes) -> Up:
    """Read a frame for the agent. Raises BadFrameError."""
    try:
        return _up.decode(body)
    except msgspec.MsgspecError as error:
        raise BadFrameError(str(error)) from None


class FrameBuffer:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add what came; return whole bodies. Raises BadFrameError for a length over the bound."""
        self._bytes += data
        bodies = []
        while len(self._bytes) >= 4:
            size = int.from_bytes(self._bytes[:4], "little")
            if size > FRAME_BYTES_MAX:
                raise BadFrameError(f"frame of {size} bytes, expected at most {FRAME_BYTES_MAX}")
            if len(self._bytes) < 4 + size:
                break
            bodies.append(bytes(self._bytes[4 : 4 + size]))
            del self._bytes[: 4 + size]
        return bodies
