"""One gRPC stream a connection over plain HTTP/2, by hand: a generator must cost less than what it loads.

Speaks what RFC 9113 and gRPC over HTTP/2 ask of a client: preface, SETTINGS both ways, one HEADERS, flow
control in both directions, PING, and the status in the trailers. Plain text on loopback alone.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable

import hpack

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_INITIAL_WINDOW, _MAX_FRAME = 4, 5
_STREAM = 1
_OURS = 1 << 20  # window that we grant the server
_HEAD = struct.Struct(">BHBBI")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Put a frame's header before its payload."""
    return _HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _opening(authority: str, path: str) -> bytes:
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority),
              ("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "load")]  # fmt: skip
    settings = struct.pack(">HIHI", 2, 0, _INITIAL_WINDOW, _OURS)
    headers = hpack.Encoder().encode(fields)
    return (
        _PREFACE
        + frame(_SETTINGS, 0, 0, settings)
        + frame(_WINDOW, 0, 0, struct.pack(">I", _OURS))
        + frame(_HEADERS, _END_HEADERS, _STREAM, headers)
    )


class Http2Wire(asyncio.Protocol):
    """A client's end. `on_message` gets each gRPC message; `on_end` the status once the stream is over."""

    def __init__(
        self, authority: str, path: str, on_message: Callable[[bytes], None], on_end: Callable[[str], None]
    ) -> None:
        self._authority, self._path = authority, path
        self._on_message, self._on_end = on_message, on_end
        self._decoder = hpack.Decoder()
        self._input, self._body, self._block = bytearray(), bytearray(), bytearray()
        self._waiting: deque[bytes] = deque()
        self._connection_window = 65_535
        self._stream_window = self._initial_window = 65_535
        self._max_frame = 16_384
        self._granted = 0
        self.ended = ""
        self.stalled = 0  # times that flow control made a message wait

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(_opening(self._authority, self._path))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"connection lost: {error or 'closed'}")

    def data_received(self, data: bytes) -> None:
        self._input += data
        at = 0
        while len(self._input) - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(self._input, at)
            end = at + 9 + (high << 16 | low)
            if end > len(self._input):
                break
            self._take(kind, flags, stream, bytes(self._input[at + 9 : end]))
            at = end
        del self._input[:at]

    # --- frames of the server

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._take_data(flags, payload)
        elif kind in (_HEADERS, _CONTINUATION):
            self._take_headers(kind, flags, payload)
        elif kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._transport.write(frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW:
            self._take_window(stream, struct.unpack(">I", payload)[0] & 0x7FFFFFFF)
        elif kind == _RST:
            self._end(f"reset {struct.unpack('>I', payload)[0]}")
        elif kind == _GOAWAY:
            self._end(f"goaway {payload[8:].decode('utf-8', 'replace')[:80]}")

    def _take_data(self, flags: int, payload: bytes) -> None:
        self._granted += len(payload)
        if self._granted > _OURS // 4:
            more = struct.pack(">I", self._granted)
            self._transport.write(frame(_WINDOW, 0, 0, more) + frame(_WINDOW, 0, _STREAM, more))
            self._granted = 0
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        self._body += payload
        while len(self._body) >= 5:
            end = 5 + int.from_bytes(self._body[1:5], "big")
            if end > len(self._body):
                break
            message = bytes(self._body[5:end])
            del self._body[:end]
            self._on_message(message)
        if flags & _END_STREAM:
            self._end("ended without a status")

    def _take_headers(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _HEADERS:
            start = (1 if flags & _PADDED else 0) + (5 if flags & _PRIORITY else 0)
            payload = payload[start : len(payload) - (payload[0] if flags & _PADDED else 0)]
        self._block += payload
        if not flags & _END_HEADERS:
            return
        fields = dict(self._decoder.decode(bytes(self._block)))
        self._block.clear()
        if "grpc-status" in fields:
            self._end(f"status {fields['grpc-status']}: {str(fields.get('grpc-message', ''))[:80]}")

    def _take_settings(self, payload: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", payload):
            if key == _INITIAL_WINDOW:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif key == _MAX_FRAME:
                self._max_frame = value
        self._transport.write(frame(_SETTINGS, _ACK, 0, b""))
        self._flush()

    def _take_window(self, stream: int, more: int) -> None:
        if stream:
            self._stream_window += more
        else:
            self._connection_window += more
        self._flush()

    def _end(self, status: str) -> None:
        if not self.ended:
            self.ended = status
            self._on_end(status)

    # --- messages of ours

    def send(self, message: bytes) -> None:
        """Send one gRPC message, in order; it waits here while the server's window is too small."""
        self._waiting.append(b"\0" + len(message).to_bytes(4, "big") + message)
        self._flush()
        self.stalled += bool(self._waiting)

    def _flush(self) -> None:
        while self._waiting and not self.ended:
            body = self._waiting[0]
            if len(body) > min(self._connection_window, self._stream_window):
                return
            self._waiting.popleft()
            self._connection_window -= len(body)
            self._stream_window -= len(body)
            parts = [body[at : at + self._max_frame] for at in range(0, len(body), self._max_frame)]
            self._transport.write(b"".join(frame(_DATA, 0, _STREAM, part) for part in parts))

    def close(self) -> None:
        """Close the connection; what ends by our wish is no loss."""
        self.ended = self.ended or "closed by us"
        self._transport.close()


async def connect(
    address: str, path: str, on_message: Callable[[bytes], None], on_end: Callable[[str], None]
) -> Http2Wire:
    """Open a connection with one stream on it."""
    host, _, port = address.rpartition(":")
    _, wire = await asyncio.get_running_loop().create_connection(
        lambda: Http2Wire(address, path, on_message, on_end), host, int(port)
    )
    return wire
