"""Space, inodes and read-only state of local file systems.

Source: /proc/self/mountinfo (proc_pid_mountinfo(5)), statvfs. Cost: one read and one statvfs a mount in 10 s.
Read-only is the super block's own state: mount flags alone also say `ro` for a bind mount, and for every
mount under systemd's ProtectSystem=strict, while an error of the file system turns the super block.
Network mounts are never asked, because they hang; a local one on a dead disk can hang too, so the asking
has its own thread and a mount that does not answer is left out, not waited for.
"""

from __future__ import annotations

import posixpath
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gpuvigil_agent.host_files import FilesystemUse, HostFiles
from gpuvigil_agent.samplers.base import Sample, SourceAbsentError
from gpuvigil_protos import catalog, entity, log

LOCAL_TYPES: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs"})
_ANYWHERE: Final = {"/": frozenset({"overlay"}), "/dev/shm": frozenset({"tmpfs"})}  # noqa: S108 - a mount
_READONLY: Final = frozenset({"ro", "emergency_ro", "shutdown"})
_MOUNTS_MAX: Final = 64
_ANSWER_S: Final = 0.5
_HIDDEN = "/inaccessible/dir"  # what systemd puts over a folder that a unit may not see
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_log = log.get("filesystem")


class Mount(NamedTuple):
    """One local file system: where it is, what holds it, whether its super block is read-only."""

    point: str
    device: str
    readonly: bool


class Filesystems:
    """Yield use and state of each local file system; `only` names the mount points to keep, empty for all.

    `missing`: those of them where nothing was mounted at the newest reading.
    """

    name = "filesystem"
    period_s = 10.0

    def __init__(self, files: HostFiles, only: Sequence[str] = ()) -> None:
        self._files = files
        self._only = frozenset(posixpath.normpath(point) for point in only)
        self.missing: frozenset[str] = frozenset()
        self._stuck: dict[str, threading.Thread] = {}

    def sample(self) -> Iterator[Sample]:
        """Read once. Raises SourceAbsentError for want of /proc/self/mountinfo or of a thread."""
        try:
            text = self._files.read("/proc/self/mountinfo")
        except OSError as error:
            raise SourceAbsentError(f"/proc/self/mountinfo: {error.strerror}") from None
        mounts = local_mounts(text, self._only)
        self._note_missing(self._only - {mount.point for mount in mounts})
        uses = self._ask([mount.point for mount in mounts])
        for name, mount in {entity.filesystem(mount.point): mount for mount in mounts}.items():
            yield Sample(catalog.FILESYSTEM_READONLY, name, float(mount.readonly))
            use = uses.get(mount.point)
            if use is not None and use.size_bytes > 0:
                yield Sample(catalog.FILESYSTEM_SIZE_BYTES, name, float(use.size_bytes))
                yield Sample(catalog.FILESYSTEM_AVAILABLE_BYTES, name, float(use.available_bytes))
                if use.inodes > 0:
                    yield Sample(catalog.FILESYSTEM_INODES, name, float(use.inodes))
                    yield Sample(catalog.FILESYSTEM_INODES_FREE, name, float(use.inodes_free))

    def _note_missing(self, missing: frozenset[str]) -> None:
        """Say once that a mount point of the config is none, or is one again."""
        if missing != self.missing:
            _log.warning("filesystems_not_mounted", missing=sorted(missing))
        self.missing = missing

    def _ask(self, points: list[str]) -> dict[str, FilesystemUse]:
        """Return what answered within the deadline. A mount has at most one thread that hangs on it."""
        self._stuck = {point: thread for point, thread in self._stuck.items() if thread.is_alive()}
        todo, answers = [point for point in points if point not in self._stuck], dict[str, FilesystemUse]()
        asking: list[str] = []
        thread = threading.Thread(
            target=_ask_each, args=(self._files, todo, answers, asking), name="statvfs", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the system gives no thread: asked again at the next reading
            raise SourceAbsentError("statvfs: no thread to ask in") from None
        thread.join(_ANSWER_S)
        if thread.is_alive() and asking:
            self._stuck[asking[-1]] = thread
            todo.clear()  # the thread, should it ever come back, has nothing more to do
        return dict(answers)


def _ask_each(
    files: HostFiles, points: list[str], answers: dict[str, FilesystemUse], asking: list[str]
) -> None:
    while points:
        point = points.pop(0)
        asking.append(point)
        try:
            answers[point] = files.usage(point)
        except OSError:
            continue  # unmounted meanwhile, or not ours to see


def local_mounts(text: str, only: frozenset[str] = frozenset()) -> list[Mount]:
    """Return the local file systems of a mountinfo text, at most 64: one a device, one a mount point.

    Of a device's mounts the first counts, of the mounts on one point the last, which hides the others.
    `only` non-empty keeps these mount points, of whatever type: who names a network mount has chosen it.
    """
    found: dict[str, Mount] = {}  # by mount point
    devices: dict[str, str] = {}
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, source = head.split(" "), tail.split(" ")
        if not separator or len(fields) < 6 or len(source) < 3 or fields[3].endswith(_HIDDEN):
            continue
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        kind, device = source[0], fields[2]
        wanted = point in only if only else kind in LOCAL_TYPES or kind in _ANYWHERE.get(point, ())
        if wanted and (devices.setdefault(device, point) == point or point in only):
            found.pop(point, None)
            found[point] = Mount(point, device, not _READONLY.isdisjoint(source[2].split(",")))
    return list(found.values())[:_MOUNTS_MAX]
