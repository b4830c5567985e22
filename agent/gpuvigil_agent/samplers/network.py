"""Carrier, traffic and errors of network interfaces, Ethernet and InfiniBand.

Source: /proc/net/dev, /sys/class/net/*/{carrier,carrier_changes} each second, speed in 10 s (it asks the
driver under the kernel's network lock). Cost: one read a tick and two an interface.
Kept: interfaces of real hardware and bonds. Left out: loopback, veth, bridges, tunnels, VLANs and SR-IOV
virtual functions, whose traffic is another interface's and whose state belongs to a container.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from gpuvigil_agent.host_files import HostFiles
from gpuvigil_agent.samplers.base import Sample, SourceAbsentError
from gpuvigil_protos import catalog, entity

_DEV: Final = "/proc/net/dev"
_CLASS: Final = "/sys/class/net"
_INTERFACES_MAX: Final = 128
_HARDWARE_NAME: Final = re.compile(r"(?:eth|en|ib|hsn|bond)[A-Za-z0-9]{1,12}\Z")
_BITS_PER_MEGABIT_BYTES: Final = 1e6 / 8


class _Chooser:
    """Which interfaces are watched; asks the kernel once for each name that comes up."""

    def __init__(self, files: HostFiles) -> None:
        self._files = files
        self._known: dict[str, bool] = {}

    def watched(self, names: list[str]) -> list[str]:
        """Return the names to read, in their order. Names that went are asked again when they return."""
        self._known = {
            name: self._known[name] if name in self._known else self._is_hardware(name) for name in names
        }
        return [name for name, kept in self._known.items() if kept][:_INTERFACES_MAX]

    def _is_hardware(self, name: str) -> bool:
        if not entity.is_valid_entity(entity.interface(name)) or "/" in name or name in {".", ".."}:
            return False  # a name made of bytes that no label may carry
        entries = self._names(f"{_CLASS}/{name}")
        if "device" in entries and "physfn" in self._names(f"{_CLASS}/{name}/device"):
            return False
        return bool({"device", "bonding"} & entries) or _HARDWARE_NAME.match(name) is not None

    def _names(self, path: str) -> set[str]:
        try:
            return set(self._files.names(path))
        except OSError:
            return set()


class Network:
    """Yield totals and carrier of each interface."""

    name = "network"
    period_s = 1.0

    def __init__(self, files: HostFiles) -> None:
        self._files = files
        self._chooser = _Chooser(files)

    def sample(self) -> Iterator[Sample]:
        """Read once. Raises SourceAbsentError when /proc/net/dev cannot be read."""
        rows = _rows(_read_dev(self._files))
        for name in self._chooser.watched(list(rows)):
            yield from _traffic(entity.interface(name), rows[name])
            yield from self._carrier(name)

    def _carrier(self, name: str) -> Iterator[Sample]:
        """An interface that an operator took down has no carrier file to read: left out, it is no fault."""
        for file, metric in (
            ("carrier", catalog.INTERFACE_UP),
            ("carrier_changes", catalog.INTERFACE_CARRIER_CHANGES_TOTAL),
        ):
            value = _number(self._files, f"{_CLASS}/{name}/{file}")
            if value is not None:
                yield Sample(metric, entity.interface(name), value)


class NetworkSpeed:
    """Yield the negotiated speed of each interface whose driver knows it."""

    name = "network_speed"
    period_s = 10.0

    def __init__(self, files: HostFiles) -> None:
        self._files = files
        self._chooser = _Chooser(files)

    def sample(self) -> Iterator[Sample]:
        """Read once. -1 (unknown, or no carrier) is left out. Raises SourceAbsentError like Network."""
        for name in self._chooser.watched(list(_rows(_read_dev(self._files)))):
            megabits = _number(self._files, f"{_CLASS}/{name}/speed")
            if megabits is not None and 0 < megabits < 1e7:
                speed = megabits * _BITS_PER_MEGABIT_BYTES
                yield Sample(catalog.INTERFACE_SPEED_BYTES, entity.interface(name), speed)


def _read_dev(files: HostFiles) -> str:
    try:
        return files.read(_DEV)
    except OSError as error:
        raise SourceAbsentError(f"{_DEV}: {error.strerror}") from None


def _rows(text: str) -> dict[str, list[str]]:
    """Return the 16 number words of every interface of /proc/net/dev; broken rows are left out."""
    rows = {}
    for line in text.split("\n")[2:]:
        name, _, tail = line.rpartition(":")
        words = tail.split()
        if len(words) >= 16 and all(word.isascii() and word.isdecimal() for word in words[:16]):
            rows[name.strip()] = words
    return rows


def _traffic(name: str, words: list[str]) -> Iterator[Sample]:
    yield Sample(catalog.INTERFACE_RECEIVE_BYTES_TOTAL, name, float(words[0]))
    yield Sample(catalog.INTERFACE_TRANSMIT_BYTES_TOTAL, name, float(words[8]))
    yield Sample(catalog.INTERFACE_ERRORS_TOTAL, name, float(int(words[2]) + int(words[10])))
    yield Sample(catalog.INTERFACE_DROPS_TOTAL, name, float(int(words[3]) + int(words[11])))


def _number(files: HostFiles, path: str) -> float | None:
    try:
        text = files.read(path).strip()
    except OSError:
        return None
    return float(text) if text.isascii() and text.isdecimal() else None
