"""Numbers out of what a loop logs, without a wait for the device: never `.item()`, never `float(tensor)`.

`log` only takes hold of a tensor (a CPU one with its version, a CUDA one by a copy to pinned memory behind
an event); the hook's thread reads it from memory later and sets it in the step's record. A tensor that was
changed in place meanwhile is left out and counted: a later value would be a lie.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections import deque
from numbers import Real
from typing import Any, Deque, Dict, NamedTuple, Optional, Union

PENDING_MAX = 256


class BadValueError(Exception):
    """What was logged is no number: text, a tensor of several elements, something else."""


class Held(NamedTuple):
    """A tensor that `log` took hold of. event is None on the host; version tells whether it was changed."""

    tensor: Any
    event: Any
    version: int


class Pending(NamedTuple):
    """A value on its way: which record's field it is for."""

    record: int
    field: int
    held: Held


def number(value: Any) -> Union[float, Held]:
    """Return a float, or hold of a tensor. Raises BadValueError."""
    kind = type(value)
    if kind is float or kind is int:
        return float(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _hold(torch, value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise BadValueError(kind.__name__)


def _hold(torch: Any, value: Any) -> Held:
    if value.is_cpu:
        host = value.detach()  # without its graph, whose memory must not live on because of us
        return Held(host, None, host._version)
    if value.is_cuda and value.numel() == 1:
        buffer = torch.empty((), dtype=torch.float64, pin_memory=True)
        buffer.copy_(value.detach().reshape(()), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(value.device))
        return Held(buffer, event, buffer._version)
    raise BadValueError("tensor of several elements, or elsewhere")


def read(held: Held) -> float:
    """Read what was held. Raises BadValueError for a tensor that was changed since, or is no number."""
    if held.tensor._version != held.version:
        raise BadValueError("tensor changed in place")
    if held.tensor.numel() != 1:
        raise BadValueError("tensor of several elements")
    return read_host(held.tensor)


def read_host(tensor: Any) -> float:
    """Read a one-element CPU tensor from its memory. Raises BadValueError for a type we do not know."""
    address = tensor.data_ptr()
    name = str(tensor.dtype).rpartition(".")[2]
    if not address:
        raise BadValueError("tensor without memory")
    if name == "bfloat16":
        raw = ctypes.c_uint16.from_address(address).value
        return float(struct.unpack("<f", struct.pack("<I", raw << 16))[0])
    if name == "float16":
        raw = ctypes.c_uint16.from_address(address).value
        return float(struct.unpack("<e", struct.pack("<H", raw))[0])
    kind = _TYPES.get(name)
    if kind is None:
        raise BadValueError("tensor of " + name)
    return float(kind.from_address(address).value)


_TYPES: Dict[str, Any] = {
    "float32": ctypes.c_float, "float64": ctypes.c_double, "int64": ctypes.c_int64, "int32": ctypes.c_int32,
    "int16": ctypes.c_int16, "int8": ctypes.c_int8, "uint8": ctypes.c_uint8,
}  # fmt: skip


class Values:
    """Values on their way, oldest first and bounded: the loop adds, the hook's thread takes."""

    def __init__(self) -> None:
        self._waiting: Deque[Pending] = deque()

    def add(self, record: int, field: int, held: Held) -> bool:
        """Take one in; False when too many are on their way."""
        if len(self._waiting) >= PENDING_MAX:
            return False
        self._waiting.append(Pending(record, field, held))
        return True

    def take(self) -> Optional[Pending]:
        """Return the oldest that has arrived, else None."""
        if not self._waiting or ((event := self._waiting[0].held.event) is not None and not event.query()):
            return None
        return self._waiting.popleft()

    def waits_for(self, record: int) -> bool:
        """Tell whether more is on its way for a record."""
        return bool(self._waiting) and self._waiting[0].record == record
