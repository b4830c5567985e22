"""The GPUs this node has had and those that answer now; kept in a file, for boards vanish over reboots too.

A board at the bus address of a missing one is its replacement: the old one is then forgotten.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_agent.driver_frames import GpuInfo

_GPUS_MAX: Final = 1024


class GpuInventory:
    """Expected against seen, by UUID. `path` may be in a folder that cannot be written: then memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, GpuInfo] = {}
        self._draft: bytes | None = None
        self._writing = threading.Lock()
        for gpu in self._load():  # presumed to be there until a complete list says otherwise
            self._known[gpu.uuid] = msgspec.structs.replace(gpu, seen=True)

    @property
    def gpus(self) -> tuple[GpuInfo, ...]:
        """Return all GPUs that the node has had, by index, each with whether it answers now."""
        return tuple(sorted(self._known.values(), key=lambda gpu: (gpu.index, gpu.uuid)))

    @property
    def seen(self) -> int:
        """Return how many answer now."""
        return sum(gpu.seen for gpu in self._known.values())

    def uuid_at(self, index: int) -> str:
        """Return the UUID of the board last known at an index, or an empty text."""
        return next((gpu.uuid for gpu in self._known.values() if gpu.index == index), "")

    def update(self, present: Iterable[GpuInfo], *, complete: bool) -> None:
        """Take the boards that answer; where the list is complete, all others are not seen."""
        before = set(self._known)
        now = {gpu.uuid: gpu for gpu in present}
        buses = {gpu.pci_bus_id for gpu in now.values()}
        self._known = {
            uuid: msgspec.structs.replace(gpu, seen=gpu.seen and not complete)
            for uuid, gpu in self._known.items()
            if uuid in now or gpu.pci_bus_id not in buses
        } | now
        if set(self._known) != before:
            self._store()

    def lose(self, uuid: str) -> None:
        """Mark one board as gone."""
        if uuid in self._known:
            self._known[uuid] = msgspec.structs.replace(self._known[uuid], seen=False)

    def lose_all(self) -> None:
        """Mark every board as gone: nothing answers."""
        for uuid in self._known:
            self.lose(uuid)

    def _load(self) -> list[GpuInfo]:
        if self._path is None:
            return []
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[GpuInfo])[:_GPUS_MAX]
        except (OSError, msgspec.MsgspecError):
            return []

    def _store(self) -> None:
        """Have the file replaced whole, in a thread: a disk that hangs holds up no tick."""
        if self._path is not None:
            self._draft = msgspec.json.encode(list(self.gpus))
            if not self._writing.locked():
                threading.Thread(
                    target=self._write, args=(self._path,), name="inventory", daemon=True
                ).start()

    def _write(self, path: Path) -> None:
        """Write the newest draft, until there is no newer one; a crash leaves the old or the new file."""
        with self._writing, contextlib.suppress(OSError):
            while (draft := self._draft) is not None:
                fresh = path.with_suffix(".new")
                fresh.write_bytes(draft)
                fresh.replace(path)
                if self._draft is draft:
                    self._draft = None
