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
from gpuvigil_protos.entity import is_valid_job

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
        try:
            found = msgspec.json.decode(message, type=Launcher)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise Refused("bad_message", f"launcher: {str(error)[:150]}") from None
        if found.protocol != 1:
            raise Refused("bad_protocol", f"protocol: expected 1, got {found.protocol}")
        if not is_valid_job(found.launcher):
            raise Refused("bad_name", "launcher: expected letters, digits and ._:+-")
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
    try:
        return msgspec.json.decode(message, type=Parked | Accepted)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise Refused("bad_word", f"launcher's word: {str(error)[:150]}") from None
