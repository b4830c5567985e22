"""The reader's side of the ring, for the agent: whatever the bytes are, values or LayoutError, never more.

The writer is another user's process: every number is checked before it is believed, and nothing loops on
what the bytes say.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Dict, List, NamedTuple, Tuple, Union

from gpuvigil import layout

Buffer = Union[bytes, bytearray, memoryview, Any]
_TRIES = 4
_STEP_MAX = 1 << 53


class LayoutError(Exception):
    """The bytes are no ring of ours; the text names the field, what was expected and what came."""


class Header(NamedTuple):
    """Who made the ring. pid is as the process sees itself, in its own namespace."""

    pid: int
    generation: int
    made_ns: int
    made_wall_ns: int


class Live(NamedTuple):
    """Where the loop is now. written: steps so far. step, last_end_ns: the newest step's, -1 and 0 before the
    first. phase is a place in layout.PHASES.
    """

    written: int
    step: int
    last_end_ns: int
    phase: int
    phase_since_ns: int


class Record(NamedTuple):
    """One step. phases: 8 durations in seconds; NaN in tokens, loss, gradient_norm, allocated is absent."""

    number: int
    step: int
    end_ns: int
    flags: int
    micro_steps: int
    seconds: float
    phases: Tuple[float, ...]
    tokens: float
    loss: float
    gradient_norm: float
    allocated: float


def header(ring: Buffer) -> Header:
    """Check the header. Raises LayoutError."""
    if len(ring) != layout.SIZE:
        raise LayoutError("size: expected %d bytes, got %d" % (layout.SIZE, len(ring)))
    magic, version, capacity, size, pid, generation, made, wall = layout.HEADER.unpack_from(ring, 0)
    if magic != layout.MAGIC:
        raise LayoutError("magic: expected %r, got %r" % (layout.MAGIC, bytes(magic)))
    if (version, capacity, size) != (layout.VERSION, layout.CAPACITY, layout.RECORD.size):
        raise LayoutError(
            "version, capacity, record size: expected %d, %d, %d, got %d, %d, %d"
            % (layout.VERSION, layout.CAPACITY, layout.RECORD.size, version, capacity, size)
        )
    return Header(pid, generation, made, wall)


def identity(ring: Buffer) -> Dict[str, Any]:
    """Return what the process says of itself. Raises LayoutError."""
    (length,) = layout.IDENTITY.unpack_from(ring, layout.IDENTITY_AT)
    if length > layout.IDENTITY_MAX:
        raise LayoutError("identity: expected at most %d bytes, got %d" % (layout.IDENTITY_MAX, length))
    start = layout.IDENTITY_AT + layout.IDENTITY.size
    try:
        found = json.loads(bytes(ring[start : start + length]) or b"{}")
    except (ValueError, RecursionError):
        raise LayoutError("identity: expected JSON") from None
    if not isinstance(found, dict):
        raise LayoutError("identity: expected an object, got %s" % type(found).__name__)
    return found


def live(ring: Buffer) -> Live:
    """Read where the loop is. Raises LayoutError when no steady value was seen in a few tries."""
    for _ in range(_TRIES):
        fields = _whole(ring, layout.LIVE_AT, layout.LIVE)
        if fields is not None:
            _, phase, _, since, _ = fields
            written = layout.WORD.unpack_from(ring, layout.WRITTEN_AT)[0]
            if phase >= len(layout.PHASES) or not 0 <= written <= _STEP_MAX:
                raise LayoutError("live: phase %d, %d records written" % (phase, written))
            newest = _record(ring, written - 1) if written else None
            step, end = (newest.step, newest.end_ns) if newest is not None else (-1, 0)
            return Live(written, step, end, phase, since)
    raise LayoutError("live: the writer was busy in each of %d tries" % _TRIES)


def heartbeat(ring: Buffer) -> int:
    """Return when the process's threads last ran, 0 for never."""
    return int(layout.WORD.unpack_from(ring, layout.HEARTBEAT_AT)[0])


def stack_signal(ring: Buffer) -> int:
    """Return the signal that has the process write its stacks, 0 for none."""
    number = int(layout.WORD.unpack_from(ring, layout.STACK_SIGNAL_AT)[0])
    return number if 0 < number <= 64 else 0


def faults(ring: Buffer) -> Dict[str, int]:
    """Return the counters of what went wrong in the use of the hook."""
    return dict(zip(layout.FAULTS, layout.FAULT_COUNTS.unpack_from(ring, layout.FAULTS_AT)))  # noqa: B905 - Python 3.9


def records(ring: Buffer, first: int, written: int) -> Tuple[List[Record], int]:
    """Return the records from index `first` to `written`, and how many of them are gone or torn."""
    start = max(first, written - layout.CAPACITY + 1)
    found = [_record(ring, index) for index in range(max(0, start), written)]
    whole = [record for record in found if record is not None]
    return whole, max(0, written - first) - len(whole)


def _record(ring: Buffer, index: int) -> Union[Record, None]:
    at = layout.RECORDS_AT + index % layout.CAPACITY * layout.RECORD.size
    for _ in range(_TRIES):
        fields = _whole(ring, at, layout.RECORD)
        if fields is not None and fields[0] == index + 1:
            return _checked(index, fields)
        if fields is not None and fields[0] > index + 1:
            return None  # overwritten by a later step
    return None


def _whole(ring: Buffer, at: int, form: struct.Struct) -> Union[Tuple[Any, ...], None]:
    """Return the fields of what carries its number at both ends, None while it is being written."""
    raw = bytes(ring[at : at + form.size])
    fields = form.unpack(raw)
    # bytes, not fields: NaN differs from itself
    same = fields[0] == fields[-1] and raw == bytes(ring[at : at + form.size])
    return fields if same else None


def _checked(index: int, fields: Tuple[Any, ...]) -> Union[Record, None]:
    step, end, flags, micro = fields[1:5]
    seconds, phases = fields[5], fields[6:14]
    sane = abs(step) <= _STEP_MAX and all(0 <= value < math.inf for value in (seconds, *phases))
    if not sane:
        return None
    return Record(index, step, end, flags, micro, seconds, tuple(phases), *fields[14:18])
