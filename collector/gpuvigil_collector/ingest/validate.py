"""Is this message acceptable? Pure checks of what an agent sent; no sample is touched in a Python loop.

A batch is refused for what makes it unreadable (length, series, checksum, time); a sample that hardware
cannot have said (infinite, outside the catalogue's range) is taken out alone and counted as quarantined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_collector.ingest.dictionary import Columns, Dictionary
from gpuvigil_collector.ingest.refusal import RefusedError, show
from gpuvigil_protos import codec
from gpuvigil_protos.entity import is_valid_entity
from gpuvigil_protos.v1 import stream_pb2 as pb

SEQUENCE_MAX: Final = (1 << 40) - 1  # one each ms for 34 years; sums of many still fit 64 bits
EVENT_TEXT_MAX: Final = 4096
_FIELDS_MAX: Final = 20
_FIELD_VALUE_MAX: Final = 512
_FIELD_KEY: Final = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")
_GAP_REASON: Final = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")
GAP_REASONS: Final = frozenset(  # what our agents say; all other words are one counter
    {
        "spool_full",
        "memory_full",
        "corrupt",
        "crash",
        "invalid_argument",
        "no_dictionary",
        codec.ALREADY_DURABLE,
    }
)
_DAY_NS: Final = 86_400 * 1_000_000_000
_PAST_NS: Final = 366 * _DAY_NS

CLASSES: Final = {pb.CLASS_METRICS: "metrics", pb.CLASS_EVENTS: "events"}
KINDS: Final = {
    number: name.removeprefix("EVENT_KIND_").lower() for name, number in pb.EventKind.items() if number
}
ORIGINS: Final = {
    number: name.removeprefix("ORIGIN_").lower() for name, number in pb.Origin.items() if number
}


@dataclass(frozen=True, slots=True)
class Block:
    """One group's ticks: tick_ns in the agent's time, values float32 [ticks, width] as they came."""

    group: int
    columns: Columns
    tick_ns: list[int]
    values: NDArray[np.float32]


def check_size(size: int) -> None:
    """Raise RefusedError for a message that is larger than any agent of ours sends."""
    if size > codec.MESSAGE_MAX_BYTES:
        expected = f"expected at most {codec.MESSAGE_MAX_BYTES} bytes"
        raise RefusedError("too_large", f"message: {expected}, got {size}")


def check_batch(
    batch: pb.Batch, size: int, dictionary: Dictionary | RefusedError | None, now_ns: int
) -> list[Block]:
    """Return a batch's blocks. `now_ns` is the collector's clock seen from the agent's (offset taken off).

    Raises RefusedError. A dictionary that was refused refuses the batches that use it, for the same reason.
    """
    check_size(size)
    _check_sequence(batch.sequence)
    if getattr(batch, "class") != pb.CLASS_METRICS:
        raise RefusedError("bad_text", f"class: expected metrics, got {getattr(batch, 'class')}")
    if isinstance(dictionary, RefusedError):
        raise RefusedError(dictionary.reason, dictionary.detail)
    if batch.blocks and (dictionary is None or dictionary.version != batch.dictionary_version):
        have = "none" if dictionary is None else str(dictionary.version)
        raise RefusedError(
            "unknown_series", f"dictionary_version: expected {have}, got {batch.dictionary_version}"
        )
    if len(batch.blocks) > codec.GROUPS_PER_NODE_MAX:
        raise RefusedError(
            "bad_length", f"blocks: expected at most {codec.GROUPS_PER_NODE_MAX}, got {len(batch.blocks)}"
        )
    blocks = [_block(block, dictionary, now_ns) for block in batch.blocks] if dictionary else []
    if codec.blocks_crc(batch.blocks) != batch.crc:
        raise RefusedError("bad_crc", f"crc: expected that of the blocks, got {batch.crc:#010x}")
    return blocks


def _block(block: pb.Block, dictionary: Dictionary, now_ns: int) -> Block:
    columns = dictionary.groups.get(block.group)
    if columns is None:
        raise RefusedError("unknown_series", f"group: expected one of the dictionary, got {block.group}")
    ticks = list(block.tick_ns)
    if not 1 <= len(ticks) <= codec.TICKS_PER_BLOCK_MAX:
        raise RefusedError(
            "bad_length", f"ticks: expected 1 to {codec.TICKS_PER_BLOCK_MAX}, got {len(ticks)}"
        )
    expected = 4 * len(ticks) * columns.width
    if len(block.values) != expected:
        raise RefusedError("bad_length", f"values: expected {expected} bytes, got {len(block.values)}")
    _check_time("tick_ns", min(ticks), now_ns)
    _check_time("tick_ns", max(ticks), now_ns)
    values = np.frombuffer(block.values, "<f4").reshape(len(ticks), columns.width)
    return Block(block.group, columns, ticks, values)


def _check_time(name: str, time_ns: int, now_ns: int) -> None:
    if not now_ns - _PAST_NS <= time_ns <= now_ns + _DAY_NS:
        days = (time_ns - now_ns) / _DAY_NS
        raise RefusedError("bad_time", f"{name}: expected the last year up to tomorrow, got {days:+.0f} days")


def quarantine(values: NDArray[np.float32], columns: Columns) -> tuple[NDArray[np.float32], int]:
    """Return the known columns with what no hardware says as NaN, and how many samples that took out."""
    known = values if columns.known is None else values[:, columns.known]
    good = (known >= columns.low) & (known <= columns.high)
    if good.all():
        return known, 0
    clean = np.where(good, known, np.float32(np.nan))
    return clean, int(np.isnan(clean).sum() - np.isnan(known).sum())


def _check_sequence(sequence: int) -> None:
    """Raise RefusedError for a sequence that no agent counts to."""
    if not 1 <= sequence <= SEQUENCE_MAX:
        raise RefusedError("bad_length", f"sequence: expected 1 to {SEQUENCE_MAX}, got {sequence}")


def check_gap(gap: pb.Gap) -> str:
    """Return the class's word of a gap record. Raises RefusedError."""
    name = CLASSES.get(getattr(gap, "class"))
    if name is None or not 1 <= gap.first <= gap.last <= SEQUENCE_MAX:
        raise RefusedError(
            "bad_length",
            f"gap: expected 1 <= first <= last <= {SEQUENCE_MAX} of a class, got {gap.first}-{gap.last}",
        )
    if not _GAP_REASON.match(gap.reason):
        raise RefusedError("bad_text", f"gap.reason: expected a word, got {show(gap.reason)}")
    return name


def check_event(event: pb.Event, size: int, now_ns: int) -> None:
    """Check one event's names, sizes and time. Raises RefusedError."""
    check_size(size)
    _check_sequence(event.sequence)
    if event.kind not in KINDS or event.origin not in ORIGINS:
        raise RefusedError(
            "bad_text", f"kind and origin: expected known ones, got {event.kind} and {event.origin}"
        )
    if not is_valid_entity(event.entity):
        raise RefusedError(
            "bad_text", f"entity: expected kind:id in printable ASCII, got {show(event.entity)}"
        )
    if len(event.text) > EVENT_TEXT_MAX:
        raise RefusedError(
            "bad_text", f"text: expected at most {EVENT_TEXT_MAX} characters, got {len(event.text)}"
        )
    if len(event.fields) > _FIELDS_MAX:
        raise RefusedError("bad_text", f"fields: expected at most {_FIELDS_MAX}, got {len(event.fields)}")
    for key, value in event.fields.items():
        if not _FIELD_KEY.match(key) or len(value) > _FIELD_VALUE_MAX:
            raise RefusedError("bad_text", f"fields: expected short words, got {show(key)}: {show(value)}")
    _check_time("time_ns", event.time_ns, now_ns)


def clean_text(text: str) -> str:
    """Escape what is not printable: a kernel line is kept for people, never raw for their terminals."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
