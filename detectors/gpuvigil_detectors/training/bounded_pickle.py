"""Read the pickles that PyTorch's Flight Recorder writes, as data and nothing else.

A dump comes from a training job, so it is hostile. This reads the dozen opcodes that build dicts, lists,
tuples, numbers, text, booleans and None, and refuses every other: there is no opcode here that could look up
a name, call, or set state, so there is nothing to forbid. Why not the standard unpickler with `find_class`
refusing: one memo opcode of five bytes makes it allocate by the gigabyte before any class is asked for,
and containers shared through the memo unfold into exponentially many when walked. Here the memo holds scalars
and is a dict; a container is never shared, so the result is a tree no larger than the file.
Source: CPython Lib/pickletools.py (opcodes); torch/csrc/jit/serialization/pickler.cpp (what is written).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final

FILE_BYTES_MAX: Final = 64 << 20
_OPS_MAX: Final = 4_000_000  # 2,000 records with 60 stack frames each are 1,200,000
_DEPTH_MAX: Final = 32
_TEXT_BYTES_MAX: Final = 64 << 10
_LONG_BYTES_MAX: Final = 9  # 64 bits and a sign
_PROTOCOL_MAX: Final = 5

_CONTAINERS: Final = (dict, list, tuple)


class DumpError(ValueError):
    """A dump that cannot be read: cut short, too large, not plain data. The reader lists it and goes on."""


class _Mark:
    """The marker that a list of items begins with."""


_MARK: Final = _Mark()


class _Machine:
    """The stack, the memo and the bytes of one pickle."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.depths: dict[int, int] = {}  # id of a container on the stack -> how deep it nests

    def take(self, count: int) -> bytes:
        """The next bytes; all of them or an error."""
        piece = self.data[self.at : self.at + count]
        if count < 0 or len(piece) != count:
            raise DumpError(f"cut short at byte {self.at}")
        self.at += count
        return piece

    def number(self, width: int) -> int:
        """One unsigned number of so many bytes."""
        return int.from_bytes(self.take(width), "little")

    def pop(self) -> object:
        """The topmost value; a marker is none."""
        if not self.stack or self.stack[-1] is _MARK:
            raise DumpError(f"no value on the stack at byte {self.at}")
        return self.stack.pop()

    def pop_items(self) -> list[object]:
        """All values down to the topmost marker, which goes too."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise DumpError(f"no marker on the stack at byte {self.at}")

    def text(self, length: int) -> None:
        """Push a text of so many bytes of UTF-8; what is not UTF-8 is replaced."""
        if length > _TEXT_BYTES_MAX:
            raise DumpError(f"a text of {length} bytes, at most {_TEXT_BYTES_MAX} are read")
        self.stack.append(self.take(length).decode("utf-8", "replace"))

    def long(self) -> None:
        """Push a number of up to 64 bits."""
        length = self.take(1)[0]
        if length > _LONG_BYTES_MAX:
            raise DumpError(f"a number of {length} bytes, at most {_LONG_BYTES_MAX} are read")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    def put(self, index: int) -> None:
        """Remember a scalar; a container is remembered as absent, so that it cannot be shared."""
        if not self.stack or self.stack[-1] is _MARK:
            raise DumpError(f"nothing to remember at byte {self.at}")
        value = self.stack[-1]
        self.memo[index] = _MARK if isinstance(value, _CONTAINERS) else value

    def get(self, index: int) -> None:
        """Push a remembered scalar."""
        value = self.memo.get(index, _MARK)
        if value is _MARK:
            raise DumpError(
                f"memo {index} at byte {self.at} is unset or a shared container, which is not read"
            )
        self.stack.append(value)

    def new(self, value: dict[object, object] | list[object] | tuple[object, ...]) -> None:
        """Push a container."""
        self.stack.append(value)
        self.depths.pop(id(value), None)  # the number of a container that is gone
        self._nest(value, value if isinstance(value, tuple) else ())

    def append(self, items: Sequence[object]) -> None:
        """Add items to the list below them."""
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, list):
            raise DumpError(f"expected a list on the stack at byte {self.at}")
        target.extend(items)
        self._nest(target, items)

    def set_items(self, items: Sequence[object]) -> None:
        """Add keys and values to the dict below them; a key is a number or a text."""
        target = self.stack[-1] if self.stack else None
        keys, values = items[::2], items[1::2]
        if not isinstance(target, dict) or len(keys) != len(values):
            raise DumpError(f"expected a dict, keys and values on the stack at byte {self.at}")
        if not all(isinstance(key, str | int) for key in keys):
            raise DumpError(f"a key that is neither text nor number at byte {self.at}")
        target.update(zip(keys, values, strict=True))
        self._nest(target, values)

    def _nest(self, container: object, items: Iterable[object]) -> None:
        """Depth of a container: one more than its deepest item. An item inside is complete and stays so."""
        nested = (self.depths.get(id(item), 1) for item in items if isinstance(item, _CONTAINERS))
        depth = max(nested, default=0) + 1
        if depth == 1:
            return  # not kept: most containers hold scalars alone
        self.depths[id(container)] = max(depth, self.depths.get(id(container), 1))
        if depth > _DEPTH_MAX:
            raise DumpError(f"nested deeper than {_DEPTH_MAX} at byte {self.at}")


def _protocol(machine: _Machine) -> None:
    version = machine.take(1)[0]
    if version > _PROTOCOL_MAX:
        raise DumpError(f"pickle protocol {version}, at most {_PROTOCOL_MAX} is read")


def _pops(machine: _Machine, count: int) -> tuple[object, ...]:
    return tuple(machine.pop() for _ in range(count))[::-1]


_OPCODES: Final[dict[int, Callable[[_Machine], object]]] = {
    0x80: _protocol,
    0x95: lambda m: m.take(8),  # FRAME: a hint of length
    ord("("): lambda m: m.stack.append(_MARK),
    ord("}"): lambda m: m.new({}),
    ord("]"): lambda m: m.new([]),
    ord(")"): lambda m: m.new(()),
    0x85: lambda m: m.new(_pops(m, 1)),
    0x86: lambda m: m.new(_pops(m, 2)),
    0x87: lambda m: m.new(_pops(m, 3)),
    ord("t"): lambda m: m.new(tuple(m.pop_items())),
    ord("a"): lambda m: m.append(_pops(m, 1)),
    ord("e"): lambda m: m.append(m.pop_items()),
    ord("s"): lambda m: m.set_items(_pops(m, 2)),
    ord("u"): lambda m: m.set_items(m.pop_items()),
    ord("N"): lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    ord("K"): lambda m: m.stack.append(m.number(1)),
    ord("M"): lambda m: m.stack.append(m.number(2)),
    ord("J"): lambda m: m.stack.append(int.from_bytes(m.take(4), "little", signed=True)),
    0x8A: lambda m: m.long(),
    ord("G"): lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),
    0x8C: lambda m: m.text(m.number(1)),
    ord("X"): lambda m: m.text(m.number(4)),
    0x8D: lambda m: m.text(m.number(8)),
    ord("q"): lambda m: m.put(m.number(1)),
    ord("r"): lambda m: m.put(m.number(4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.number(1)),
    ord("j"): lambda m: m.get(m.number(4)),
}
_STOP: Final = ord(".")


def read_pickle(data: bytes) -> object:
    """Return the plain data of a pickle: dicts, lists, tuples, numbers, text, booleans, None; a tree.

    Raises DumpError for every opcode that is not plain data, and for what is cut short, too large, too deep
    or malformed. Time and memory are bounded by the length of `data`.
    """
    if len(data) > FILE_BYTES_MAX:
        raise DumpError(f"{len(data)} bytes, at most {FILE_BYTES_MAX} are read")
    machine = _Machine(data)
    for _ in range(_OPS_MAX):
        opcode = machine.take(1)[0]
        if opcode == _STOP:
            return _result(machine)
        step = _OPCODES.get(opcode)
        if step is None:
            raise DumpError(f"opcode 0x{opcode:02x} at byte {machine.at - 1} is not plain data")
        step(machine)
    raise DumpError(f"more than {_OPS_MAX} opcodes")


def _result(machine: _Machine) -> object:
    value = machine.pop()
    if machine.stack:
        raise DumpError(f"{len(machine.stack)} values left over at the end")
    return value
