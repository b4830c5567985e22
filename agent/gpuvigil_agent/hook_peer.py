"""Who registered: uid, process and workload as the kernel says them, and what the process claims, checked.

Source: SO_PEERCRED [pid, uid of connect()], /proc/PID/cgroup, descriptors by SCM_RIGHTS. The claims are JSON
of another user's process and hostile until checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import socket
import stat
import struct
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from gpuvigil import flight, layout
from gpuvigil_protos.entity import is_valid_job

MESSAGE_MAX: Final = 8192
_CREDENTIALS: Final = struct.Struct("3i")
# a workload is what one scheduler started together: Slurm's job, Kubernetes' pod, else the group itself
_WORKLOAD: Final = re.compile(
    r"^(.*?/job_\d+|.*?/(?:kubepods)?[^/]*pod[0-9a-f][0-9a-f_-]{31,}(?:\.slice)?)(?:/|$)"
)

_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
_Place = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
_Word = Annotated[str, msgspec.Meta(max_length=128)]
_Op = Annotated[
    str,
    msgspec.Meta(max_length=120, pattern=r"^\d{1,18}:\d{1,18}:[sbc]p?:[\w .<>+-]*:\d{0,15}:[\w .<>+-]*\Z"),
]


class Refused(Exception):  # noqa: N818 - an outcome that is told, not an error of ours
    """What was said or asked is not taken; the text goes back, `reason` is the counter's word."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Identity(msgspec.Struct, frozen=True):
    """What a process says of itself; fields that this agent does not know are ignored."""

    job: _Word
    rank: _Count = 0
    local_rank: _Count = 0
    world_size: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    attempt: _Count = 0
    restart: _Count = 0
    launcher: _Word = ""
    program: _Word = ""
    gpu: _Word = ""
    on_request: _Word = ""


class Exit(msgspec.Struct, frozen=True, tag_field="event", tag="exit"):
    """The process ends by its own will."""


class Save(msgspec.Struct, frozen=True, tag_field="event", tag="save"):
    """How a save went, as one rank tells it. outcome: saved, failed, partial, fenced, no_space, unusable."""

    outcome: Literal["saved", "failed", "partial", "fenced", "no_space", "unusable"]
    step: Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)]
    rank: _Count
    generation: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    path: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    detail: Annotated[str, msgspec.Meta(max_length=400)] = ""
    request: Annotated[str, msgspec.Meta(max_length=32)] = ""


class Group(msgspec.Struct, frozen=True):
    """How far one process group came, as one rank tells it; None where its backend does not."""

    group: Annotated[str, msgspec.Meta(max_length=40)]
    ranks: Annotated[str, msgspec.Meta(max_length=120, pattern=r"^[0-9,/-]*$")] = ""
    enqueued: _Place | None = None
    started: _Place | None = None
    completed: _Place | None = None


class Standstill(msgspec.Struct, frozen=True, tag_field="event", tag="standstill"):
    """A loop that stands still: for how long, where its main thread is, its groups, their timeout in s."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    stack: Annotated[list[Annotated[str, msgspec.Meta(max_length=80)]], msgspec.Meta(max_length=8)]
    groups: Annotated[list[Group], msgspec.Meta(max_length=12)] = []
    timeout: Annotated[int, msgspec.Meta(ge=0, le=10**9)] = 0


class FlightGroup(Group, frozen=True):
    """One group with its last ops, each as `gpuvigil.flight` writes them."""

    about: Annotated[str, msgspec.Meta(max_length=40)] = ""
    ops: Annotated[list[_Op], msgspec.Meta(max_length=flight.OPS_MAX)] = []


class Flight(msgspec.Struct, frozen=True, tag_field="event", tag="flight"):
    """What torch's own records say of a process that was asked for them, and where its main thread is."""

    number: _Place
    stack: Annotated[list[Annotated[str, msgspec.Meta(max_length=80)]], msgspec.Meta(max_length=8)]
    groups: Annotated[list[FlightGroup], msgspec.Meta(max_length=flight.GROUPS_MAX)] = []


Word = Exit | Save | Standstill | Flight


class Registration(msgspec.Struct, frozen=True):
    """The first message of a connection."""

    protocol: int
    generation: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    identity: Identity


class Peer(msgspec.Struct, frozen=True):
    """What the kernel says of the process at the other end. workload is "" where /proc does not tell."""

    pid: int
    uid: int
    workload: str


def peer_of(connection: socket.socket, proc: Path = Path("/proc")) -> Peer:
    """Ask the kernel who connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    text = ""
    with contextlib.suppress(OSError):
        text = (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
    return Peer(pid, uid, workload_of(text))


def workload_of(cgroup: str) -> str:
    """Return the workload that a /proc/PID/cgroup names: its deepest path, cut at the scheduler's unit."""
    paths = [line.split(":", 2)[2] for line in cgroup.splitlines() if line.count(":") >= 2]
    deepest = max(paths, key=lambda path: (path.count("/"), len(path)), default="")
    found = _WORKLOAD.match(deepest)
    return found[1] if found else deepest


def parse(message: bytes) -> Registration:
    """Check a registration. Raises Refused."""
    found: Registration = decode(message, Registration, "bad_message", "registration")
    check_hello(found.protocol, found.identity.job, "identity.job")
    if found.identity.rank >= found.identity.world_size:
        size, rank = found.identity.world_size, found.identity.rank
        raise Refused("bad_rank", f"identity.rank: expected less than world_size {size}, got {rank}")
    return found


def parse_word(message: bytes) -> Word:
    """Check what a registered process says. Raises Refused."""
    word: Word = decode(message, Word, "bad_word", "word")
    return word


def decode(message: bytes, kind: Any, reason: str, what: str) -> Any:
    """Read a message as a struct, or a union of them. Raises Refused with this reason, about `what`."""
    try:
        return msgspec.json.decode(message, type=kind)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise Refused(reason, f"{what}: {str(error)[:150]}") from None


def check_hello(protocol: int, job: str, field: str) -> None:
    """Check what every first message has; field: the job's, as the message calls it. Raises Refused."""
    if protocol != 1:
        raise Refused("bad_protocol", f"protocol: expected 1, got {protocol}")
    if not is_valid_job(job):
        raise Refused("bad_name", f"{field}: expected letters, digits and ._:+-")


def map_ring(fd: int) -> mmap.mmap:
    """Map a process's ring for reading. Raises Refused where it could shrink under us."""
    _check_file(fd, layout.SIZE, "ring")
    return _map(fd, layout.SIZE, mmap.PROT_READ, "ring")


def map_control(fd: int) -> mmap.mmap:
    """Map the page that we write. Raises Refused."""
    _check_file(fd, layout.CONTROL_SIZE, "control page")
    return _map(fd, layout.CONTROL_SIZE, mmap.PROT_READ | mmap.PROT_WRITE, "control page")


def own_stacks(files: list[int]) -> int:
    """Return our own descriptor of the file that stacks come into, the third; -1 where none was sent.

    Raises Refused.
    """
    if len(files) < 3:
        return -1
    _check_file(files[2], layout.STACKS_SIZE, "stacks")
    return os.dup(files[2])


def _map(fd: int, size: int, protection: int, what: str) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, protection)
    except (OSError, ValueError) as error:
        raise Refused("bad_file", f"{what}: cannot be mapped: {error}") from None


def _check_file(fd: int, size: int, what: str) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        raise Refused("bad_file", f"{what}: expected a file of {size} bytes, got {found.st_size}")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if not seals & fcntl.F_SEAL_SHRINK:
        raise Refused("bad_file", f"{what}: expected a memfd sealed against shrinking")


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one message and its descriptors, which the caller closes. Raises BlockingIOError, OSError."""
    data, files, flags, _ = socket.recv_fds(connection, MESSAGE_MAX, 4)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(files)
        raise Refused("bad_message", f"registration: expected at most {MESSAGE_MAX} bytes and 4 descriptors")
    return data, files


def close_all(files: list[int]) -> None:
    """Close descriptors that a peer sent."""
    for fd in files:
        os.close(fd)


def answer(connection: socket.socket, body: dict[str, Any]) -> None:
    """Tell the process what became of its registration; one that does not listen is no fault of ours."""
    with contextlib.suppress(OSError):
        connection.send(msgspec.json.encode(body))
