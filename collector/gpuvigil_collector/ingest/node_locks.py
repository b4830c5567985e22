"""One worker a node: byte-range locks on one file, which the kernel drops when a worker dies.

A node's second worker would not know what the first has received but not yet made durable. So a worker
takes the node's lock before its first stream, keeps it until all is durable, and takes no new node while a
sibling is down or recovering (its segments may hold what no ledger says yet).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Final

_NODES_AT: Final = 1 << 16


class NodeLocks:
    """Locks of this worker. Byte `index` of the file says that worker `index` is up and has recovered."""

    def __init__(self, path: Path, index: int, workers: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._siblings = [other for other in range(workers) if other != index]
        self._held: set[str] = set()
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, index)

    def take(self, node: str) -> bool:
        """Take a node; False while a sibling has it, or any sibling is not up."""
        if node in self._held:
            return True
        if not all(self._is_held(other) for other in self._siblings) or not self._try(_place(node)):
            return False
        self._held.add(node)
        return True

    def release(self, node: str) -> None:
        """Let a sibling have the node."""
        if node in self._held:
            self._held.remove(node)
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _place(node))

    def _is_held(self, place: int) -> bool:
        if not self._try(place):
            return True
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, place)
        return False

    def _try(self, place: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            return False
        return True


def _place(node: str) -> int:
    digest = hashlib.blake2b(node.encode(), digest_size=7).digest()
    return _NODES_AT + int.from_bytes(digest, "little")
