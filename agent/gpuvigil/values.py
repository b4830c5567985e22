"""Numbers out of what a loop logs, without a wait for the device: never `.item()`, never `float(tensor)`.

A CPU scalar is read from its memory. A CUDA scalar is copied to pinned memory behind an event, and read in a
later step once the event has passed.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from numbers import Real
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

PENDING_MAX = 64


class Pending(NamedTuple):
    """A device value on its way: which record's field it is for."""

    record: int
    field: int
    buffer: Any
    event: Any


class BadValueError(Exception):
    """What was logged is no number: text, a tensor of several elements, something else."""


def number(value: Any) -> Union[float, Any]:
    """Return a float, or the tensor itself when it is on a device. Raises BadValueError."""
    kind = type(value)
    if kind is float or kind is int:
        return float(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise BadValueError("tensor of several elements")
        return read_host(value) if value.device.type == "cpu" else value
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise BadValueError(kind.__name__)


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


class DeviceValues:
    """Copies on their way from the device, oldest first; bounded."""

    def __init__(self) -> None:
        self._pending: List[Pending] = []

    def add(self, index: int, field: int, tensor: Any) -> bool:
        """Start a copy without waiting; False when too many are on their way."""
        if len(self._pending) >= PENDING_MAX:
            return False
        torch = sys.modules["torch"]
        buffer = torch.empty((), dtype=torch.float64, pin_memory=True)
        buffer.copy_(tensor.detach().reshape(()), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(tensor.device))
        self._pending.append(Pending(index, field, buffer, event))
        return True

    def ready(self) -> Optional[Tuple[int, int, float]]:
        """Return (record, field, value) of the oldest copy if it has arrived, else None."""
        if not self._pending or not self._pending[0].event.query():
            return None
        done = self._pending.pop(0)
        return done.record, done.field, read_host(done.buffer)

    def __len__(self) -> int:
        return len(self._pending)
