"""Launchers (`gpuvigil run`) that registered: whom a restart in place is asked of.

A launcher belongs to the uid that the kernel names. It is asked only about the job it named, and only while
no rank of that job on this node belongs to another uid.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from gpuvigil_agent import hook_peer
from gpuvigil_agent.hook_peer import Peer, Refused

_LAUNCHERS_MAX: Final = 64


class Launcher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first message of a launcher."""

    protocol: int
    launcher: Annotated[str, msgspec.Meta(max_length=128)]
    pid: int = 0


class Parked(msgspec.Struct, frozen=True, tag_field="event", tag="parked"):
    """The launcher gave up: attempts that brought no checkpoint newer than this step."""

    attempts: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    step: Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)]


class Accepted(msgspec.Struct, frozen=True, tag_field="event", tag="accepted"):
    """The launcher acts on what it was asked."""

    id: Annotated[str, msgspec.Meta(max_length=32)] = ""


class Launchers:
    """Live launchers by job."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[socket.socket, Peer]] = {}

    def register(self, connection: socket.socket, message: bytes) -> str:
        """Take a launcher in, in the place of its own older connection; return its job. Raises Refused."""
        found: Launcher = hook_peer.decode(message, Launcher, "bad_message", "launcher")
        hook_peer.check_hello(found.protocol, found.launcher, "launcher")
        peer = hook_peer.peer_of(connection)
        before = self._known.get(found.launcher)
        if before is not None and before[1].uid != peer.uid:
            raise Refused("launcher_claim", f"launcher: job {found.launcher} has one of another user")
        if before is None and len(self._known) >= _LAUNCHERS_MAX:
            raise Refused("too_many_launchers", f"launchers: expected at most {_LAUNCHERS_MAX} on this node")
        self._known[found.launcher] = (connection, peer)
        return found.launcher

    def gone(self, connection: socket.socket) -> None:
        """Forget a connection that ended."""
        self._known = {job: known for job, known in self._known.items() if known[0] is not connection}

    def restart(self, job: str, request: str, uids: Iterable[int]) -> str:
        """Ask a job's launcher to restart it; return what became of it. Raises Refused."""
        known = self._known.get(job)
        if known is None:
            raise Refused("no_launcher", f"job {job}: no `gpuvigil run` of it on this node")
        connection, peer = known
        if any(uid != peer.uid for uid in uids):
            raise Refused(
                "launcher_claim", f"job {job}: its launcher and its ranks belong to different users"
            )
        try:
            connection.send(msgspec.json.encode({"command": "restart", "id": request}))
        except OSError as error:
            raise Refused(
                "no_launcher", f"job {job}: its launcher does not listen: {error.strerror}"
            ) from None
        return "the launcher was asked"


def parse(message: bytes) -> Parked | Accepted:
    """Check what a launcher says. Raises Refused."""
    word: Parked | Accepted = hook_peer.decode(message, Parked | Accepted, "bad_word", "launcher's word")
    return word
