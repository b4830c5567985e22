"""Checkpoints on disk: written beside, verified, renamed; the newest valid one; and a fence against orphans.

    DIRECTORY/GENERATION                       the attempt that may write, counted up at each start
    DIRECTORY/step-0000000120-g000003/         whole: COMPLETE.json names each file, its size and SHA-256
    DIRECTORY/step-0000000140-g000003.partial/ being written, or left by an attempt that died

The directory is one that all ranks share. A folder carries its generation, so no two attempts ever write into
one; a process of an older attempt sees the newer number and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

MANIFEST = "COMPLETE.json"
_GENERATION = "GENERATION"
_NAME = re.compile(r"step-(\d{10})-g(\d{6})\Z")
_BLOCK = 1 << 20
_MANIFEST_MAX = 64 << 20


class FencedError(Exception):
    """A newer attempt of this job has begun: this process must not write."""


class Checkpoint(NamedTuple):
    """A checkpoint that is whole."""

    path: Path
    step: int
    generation: int
    size: int


def folder_name(step: int, generation: int) -> str:
    """Return the name of a checkpoint's folder."""
    return "step-%010d-g%06d" % (step, generation)


class Fence:
    """Who may write. `take` by one process of an attempt; every rank gets the number and checks it."""

    def __init__(self, directory: Path, generation: int = 0) -> None:
        self._file = directory / _GENERATION
        self.generation = generation

    def take(self) -> int:
        """Begin a new attempt: older ones are fenced from now on. Raises OSError."""
        self.generation = self._read() + 1
        write_durably(self._file, str(self.generation).encode())
        return self.generation

    def check(self) -> None:
        """Raise FencedError when a newer attempt has begun, OSError when nobody can tell."""
        newest = self._read()
        if newest != self.generation:
            raise FencedError(
                "generation: expected %d, got %d: a newer attempt runs" % (self.generation, newest)
            )

    def _read(self) -> int:
        try:
            text = self._file.read_bytes()[:20].decode("ascii", "replace").strip()
        except FileNotFoundError:
            return 0
        return int(text) if text.isdigit() else 0


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, on disk when it returns."""
    fresh = path.with_name("%s.%d.new" % (path.name, os.getpid()))
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_of(folder: Path) -> List[str]:
    """Return the relative names of all files of a folder, sorted; what is no plain file is left out."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name != MANIFEST
    )  # fmt: skip


def digest(path: Path) -> Tuple[int, str]:
    """Return a file's size and SHA-256; what was written is on disk when it returns. Raises OSError."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while True:
            block = file.read(_BLOCK)
            if not block:
                break
            found.update(block)
        return file.tell(), found.hexdigest()


def finish(partial: Path, step: int, fence: Fence, files: Dict[str, Tuple[int, str]]) -> Checkpoint:
    """Make a partial checkpoint whole: manifest, fence, rename. Raises FencedError, OSError."""
    final = partial.with_name(folder_name(step, fence.generation))
    manifest = {"version": 1, "step": step, "generation": fence.generation, "files": files}
    for folder in sorted({(partial / name).parent for name in files} | {partial}):
        _sync_folder(folder)
    write_durably(partial / MANIFEST, json.dumps(manifest).encode())
    fence.check()
    partial.rename(final)
    _sync_folder(final.parent)
    return Checkpoint(final, step, fence.generation, sum(size for size, _ in files.values()))


def newest(directory: Path, verify: bool = True) -> Optional[Checkpoint]:
    """Return the newest whole checkpoint whose files are what the manifest says, or None.

    verify False believes sizes. One that is spoilt is passed over for the one before it.
    """
    for path in _candidates(directory):
        found = check(path, verify)
        if found is not None:
            return found
    return None


def _candidates(directory: Path) -> List[Path]:
    try:
        named = [(match, path) for path in directory.iterdir() if (match := _NAME.match(path.name))]
    except OSError:
        return []
    return [path for _, path in sorted(((m[1], m[2]), path) for m, path in named)][::-1]


def check(path: Path, verify: bool = True) -> Optional[Checkpoint]:
    """Return a folder's checkpoint when it is whole, else None."""
    match = _NAME.match(path.name)
    try:
        raw = path / MANIFEST
        if match is None or raw.stat().st_size > _MANIFEST_MAX:
            return None
        manifest = json.loads(raw.read_bytes())
        files = _files(manifest)
        if (manifest["step"], manifest["generation"]) != (int(match[1]), int(match[2])):
            return None
        for name, (size, checksum) in files.items():
            if (path / name).stat().st_size != size or (verify and digest(path / name)[1] != checksum):
                return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Checkpoint(path, int(match[1]), int(match[2]), sum(size for size, _ in files.values()))


def _files(manifest: Any) -> Dict[str, Tuple[int, str]]:
    """Read the manifest's table. Raises ValueError for a name that leaves the folder, TypeError, KeyError."""
    found = {}
    for name, (size, checksum) in manifest["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(name)
        found[name] = (int(size), str(checksum))
    return found


def discard(partial: Path) -> None:
    """Remove what a save left that did not become whole."""
    shutil.rmtree(str(partial), ignore_errors=True)


def prune(directory: Path, keep: int, generation: int) -> None:
    """Remove whole checkpoints but the newest `keep`, and partial ones that older attempts left."""
    whole = [path for path in _candidates(directory) if (path / MANIFEST).exists()]
    for path in whole[max(1, keep) :]:
        discard(path)
    for path in directory.glob("step-*.partial"):
        match = _NAME.match(path.name[: -len(".partial")])
        if match is not None and int(match[2]) < generation:
            discard(path)
