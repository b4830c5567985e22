"""The hook's side of the ring: a sealed anonymous file that outlives the process in the agent's hands.

Sealed against shrinking, so that no reader of the mapping can be hit by SIGBUS.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import secrets
import tempfile
import time
from typing import Any, Dict, List, Sequence

from gpuvigil import layout

_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


def anonymous_file(name: str, size: int) -> int:
    """Make a file of `size` zero bytes that has no name and cannot shrink; return its descriptor.

    Where the kernel has no memfd it is an unlinked temporary file, which the agent refuses to map.
    """
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    seals = sum(getattr(fcntl, seal, 0) for seal in _SEALS)
    with contextlib.suppress(OSError):  # the temporary file cannot be sealed
        fcntl.fcntl(fd, getattr(fcntl, "F_ADD_SEALS", 1033), seals)
    return fd


class Ring:
    """What one training process tells. One thread writes, but for the heartbeat, which has its own word."""

    def __init__(self) -> None:
        self.fd = anonymous_file("gpuvigil-ring", layout.SIZE)
        self._map = mmap.mmap(self.fd, layout.SIZE)
        self._words = memoryview(self._map).cast("q")
        self.generation = secrets.randbits(63) | 1
        self.written = 0
        self._number = 0
        self.faults = [0] * len(layout.FAULTS)
        layout.HEADER.pack_into(
            self._map, 0, layout.MAGIC, layout.VERSION, layout.CAPACITY, layout.RECORD.size, os.getpid(),
            self.generation, time.monotonic_ns(), time.time_ns(),
        )  # fmt: skip

    def identify(self, identity: Dict[str, Any]) -> None:
        """Write who this process is, so that the ring still says it after the process is gone."""
        text = json.dumps(identity).encode()
        if len(text) <= layout.IDENTITY_MAX:
            layout.IDENTITY.pack_into(self._map, layout.IDENTITY_AT, 0)
            start = layout.IDENTITY_AT + layout.IDENTITY.size
            self._map[start : start + len(text)] = text
            layout.IDENTITY.pack_into(self._map, layout.IDENTITY_AT, len(text))

    def live(self, phase: int, since: int) -> None:
        """Say which phase the loop is in, and since when."""
        number = self._number = self._number + 1
        layout.LIVE.pack_into(self._map, layout.LIVE_AT, number, phase, 0, since, number)

    def record(self, step: int, end: int, flags: int, micro: int, numbers: Sequence[float]) -> int:
        """Add a step, return its index. `numbers`: seconds, 8 phases, tokens, loss, gradient norm, memory."""
        index = self.written
        at = layout.RECORDS_AT + index % layout.CAPACITY * layout.RECORD.size
        layout.RECORD.pack_into(self._map, at, index + 1, step, end, flags, micro, *numbers, index + 1)
        self.written = index + 1
        self._words[layout.WRITTEN_AT // 8] = index + 1
        return index

    def amend(self, index: int, field: int, value: float, flags: int, clear: int) -> None:
        """Set a number, and flags but those to clear, of a record that is still here."""
        if self.written - index >= layout.CAPACITY - 1:
            return
        at = layout.RECORDS_AT + index % layout.CAPACITY * layout.RECORD.size
        fields: List[Any] = list(layout.RECORD.unpack_from(self._map, at))
        if fields[0] == index + 1:
            fields[3] = fields[3] & ~clear | flags
            fields[5 + field] = value
            layout.WORD.pack_into(self._map, at, 0)  # no reader takes it half old, half new
            layout.RECORD.pack_into(self._map, at, *fields)

    def fault(self, kind: int) -> None:
        """Count what went wrong on our side or in the use of us."""
        self.faults[kind] = (self.faults[kind] + 1) & 0xFFFFFFFF
        layout.FAULT_COUNTS.pack_into(self._map, layout.FAULTS_AT, *self.faults)

    def beat(self) -> None:
        """Say that threads of this process still run."""
        layout.WORD.pack_into(self._map, layout.HEARTBEAT_AT, time.monotonic_ns())

    def stack_signal(self, number: int) -> None:
        """Say which signal has this process write its stacks, 0 for none."""
        layout.WORD.pack_into(self._map, layout.STACK_SIGNAL_AT, number)

    def close(self) -> None:
        """Let go of the mapping and the descriptor; the agent keeps its own."""
        self._words.release()
        self._map.close()
        os.close(self.fd)


class Control:
    """The page that the agent writes: requests to the loop. Reading it costs tens of nanoseconds."""

    def __init__(self) -> None:
        self.fd = anonymous_file("gpuvigil-control", layout.CONTROL_SIZE)
        self._map = mmap.mmap(self.fd, layout.CONTROL_SIZE)
        layout.CONTROL.pack_into(self._map, 0, layout.CONTROL_MAGIC, layout.VERSION, 0, 0, 0, b"")
        self._words = memoryview(self._map).cast("Q")

    @property
    def request(self) -> int:
        """Return the number of the newest request to save, 0 for none."""
        return self._words[layout.CONTROL_REQUEST_AT // 8]

    @property
    def evidence(self) -> int:
        """Return the number of the newest request for evidence, 0 for none."""
        return self._words[layout.CONTROL_EVIDENCE_AT // 8]

    @property
    def request_id(self) -> str:
        """Return the newest request's own name."""
        _, raw = layout.CONTROL_BODY.unpack_from(self._map, layout.CONTROL_BODY_AT)
        return bytes(raw).rstrip(b"\0").decode("ascii", "replace")

    def close(self) -> None:
        """Let go of the page."""
        self._words.release()
        self._map.close()
        os.close(self.fd)
