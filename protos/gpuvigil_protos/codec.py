"""Batches as bytes: float32 columns, their checksum and their limits. Standard library alone.

A Block holds the ticks of one Group of series: values are little-endian float32, row-major
[ticks x series]; NaN marks an absent sample. The collector reads them with `numpy.frombuffer`.
"""

from __future__ import annotations

import array
import struct
import sys
import zlib
from collections.abc import Iterable, Sequence
from typing import Final

from gpuvigil_protos.v1 import stream_pb2 as pb

ALREADY_DURABLE: Final = "already_durable"  # reason of a Gap: nothing is lost, an earlier ledger had it
SCHEMA_VERSION: Final = 1
MESSAGE_MAX_BYTES: Final = 1 << 20
SERIES_PER_NODE_MAX: Final = 5000
TICKS_PER_BLOCK_MAX: Final = 600
GROUPS_PER_NODE_MAX: Final = 64
FLOAT32_MAX: Final = 3.4028234663852886e38


def pack_float32(values: Iterable[float]) -> bytes:
    """Pack values as little-endian float32; what float32 cannot hold becomes NaN (absent), never infinity."""
    packed = array.array("f", (v if abs(v) <= FLOAT32_MAX else float("nan") for v in values))
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_float32(data: bytes) -> Sequence[float]:
    """Undo `pack_float32`. Raises ValueError when the length is no multiple of 4."""
    unpacked = array.array("f")
    unpacked.frombytes(data)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return unpacked


def blocks_crc(blocks: Iterable[pb.Block]) -> int:
    """CRC-32 (zlib) over every block's group, tick count, ticks and values, in order."""
    crc = 0
    for block in blocks:
        ticks = block.tick_ns
        crc = zlib.crc32(struct.pack(f"<II{len(ticks)}q", block.group, len(ticks), *ticks), crc)
        crc = zlib.crc32(block.values, crc)
    return crc
