"""Files that are whole or not there: written beside their name, synced, renamed, the folder synced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

TEMPORARY: Final = ".tmp"


def put(path: Path, write: Callable[[Any], object], before_sync: Callable[[], None]) -> int:
    """Write a file in place of what was there; return its size. `sync_folder` must follow. Raises OSError."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        before_sync()
        os.fsync(file.fileno())
        size = file.tell()
    temporary.rename(path)
    return size


def sync_folder(directory: Path) -> None:
    """Make renames and deletions in a folder survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
