"""Numbers out of what a loop logs, without a wait for the device: never `.item()`, never `float(tensor)`.

A CPU tensor has its value already, so it is read from its memory at once and not kept: a tensor that lives on
because of us moves where the next step's memory lies. Of a CUDA tensor, or a pinned one that a copy may still
be under way to, `log` takes hold behind an event, and the hook's thread sets the value in the step's record.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections import deque
from numbers import Real
from typing import Any, Callable, Deque, Dict, NamedTuple, Optional, Union

PENDING_MAX = 256
_PLAIN = (float, int)


class BadValueError(Exception):
    """What was logged is no number: text, a tensor of several elements, something else."""


class Held(NamedTuple):
    """A host tensor that holds the value once the event has come. version tells whether it was changed."""

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
    if type(value) in _PLAIN:
        return float(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_tensor(torch, value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise BadValueError(type(value).__name__)


def _of_tensor(torch: Any, value: Any) -> Union[float, Held]:
    if value.numel() != 1:
        raise BadValueError("tensor of several elements")
    if value.is_cpu:
        # _initialized: what is_initialized() reads; a call between real steps finds cold caches
        if torch.cuda._initialized and value.is_pinned():
            return Held(value.detach(), _event(torch, None), value._version)
        return read(value)
    if value.is_cuda:
        buffer = torch.empty((), dtype=torch.float64, pin_memory=True)
        buffer.copy_(value.detach().reshape(()), non_blocking=True)
        return Held(buffer, _event(torch, value.device), buffer._version)
    raise BadValueError("tensor elsewhere")


def _event(torch: Any, device: Any) -> Any:
    """Return an event behind all that the current stream was given."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def read(tensor: Any) -> float:
    """Read a one-element CPU tensor from its memory. Raises BadValueError for a type we do not know."""
    reader = _readers.get(tensor.dtype) or _reader(tensor.dtype)
    address = tensor.data_ptr()
    if not address:
        raise BadValueError("tensor without memory")
    return reader(address)


def _reader(dtype: Any) -> Callable[[int], float]:
    """Find, once a type, how a number of it is read at an address."""
    name = str(dtype).rpartition(".")[2]
    found = _HALVES.get(name)
    if found is None:
        kind = _TYPES.get(name)
        if kind is None:
            raise BadValueError("tensor of " + name)
        from_address = kind.from_address
        found = lambda address: from_address(address).value  # noqa: E731
    _readers[dtype] = found
    return found


def _half(address: int) -> float:
    raw = ctypes.c_uint16.from_address(address).value
    return float(struct.unpack("<e", struct.pack("<H", raw))[0])


def _brain_half(address: int) -> float:
    raw = ctypes.c_uint16.from_address(address).value
    return float(struct.unpack("<f", struct.pack("<I", raw << 16))[0])


_HALVES: Dict[str, Callable[[int], float]] = {"float16": _half, "bfloat16": _brain_half}
_TYPES: Dict[str, Any] = {
    "float32": ctypes.c_float, "float64": ctypes.c_double, "int64": ctypes.c_int64, "int32": ctypes.c_int32,
    "int16": ctypes.c_int16, "int8": ctypes.c_int8, "uint8": ctypes.c_uint8,
}  # fmt: skip
_readers: Dict[Any, Callable[[int], float]] = {}


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
        if not self._waiting or not self._waiting[0].held.event.query():
            return None
        return self._waiting.popleft()

    def waits_for(self, record: int) -> bool:
        """Tell whether more is on its way for a record."""
        return bool(self._waiting) and self._waiting[0].record == record
