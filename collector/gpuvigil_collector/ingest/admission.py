"""Who may stream: schema, names, the certificate's identity, one live stream a node, one worker a node."""

from __future__ import annotations

import re
import time
from typing import Final

import grpc

from gpuvigil_collector.ingest.ledger import Ledger
from gpuvigil_collector.ingest.node_locks import NodeLocks
from gpuvigil_collector.ingest.refusal import StreamRejectedError, show
from gpuvigil_collector.ingest.session import ROLES, Session
from gpuvigil_protos.codec import SCHEMA_VERSION
from gpuvigil_protos.entity import gpu, is_valid_entity, is_valid_node_name
from gpuvigil_protos.v1 import stream_pb2 as pb

ALIVE_S: Final = 5.0
BOOTS_IN_MEMORY_MAX: Final = 64
GPUS_MAX: Final = 1024
_BOOT_ID: Final = re.compile(r"[A-Za-z0-9._:/+-]{1,100}\Z")
_Code = grpc.StatusCode


class Admission:
    """The streams that are open now, by node and role."""

    def __init__(self, ledger: Ledger, locks: NodeLocks | None) -> None:
        self._ledger = ledger
        self._locks = locks
        self._open: dict[tuple[str, str], Session] = {}

    def admit(self, hello: pb.Hello, peer: str, certificate_names: frozenset[str] | None) -> Session:
        """Let a stream in. certificate_names is None in plain text. Raises StreamRejectedError."""
        check_hello(hello)
        if certificate_names is not None and hello.node not in certificate_names:
            raise StreamRejectedError(
                _Code.PERMISSION_DENIED,
                "wrong_name",
                f"hello.node: expected a name of the certificate, got {show(hello.node)}",
            )
        old = self._open.get((hello.node, ROLES[hello.role]))
        if old is not None:
            _replace(old, hello.boot_id, peer)
        return self._enter(hello, peer)

    def _enter(self, hello: pb.Hello, peer: str) -> Session:
        node, boot_id, role = hello.node, hello.boot_id, ROLES[hello.role]
        if self._locks is not None and not self._locks.take(node):
            raise StreamRejectedError(
                _Code.UNAVAILABLE, "handing_over", "node: another worker has it, or is recovering; try again"
            )
        self._ledger.claim(node)
        if self._ledger.boots(node) > BOOTS_IN_MEMORY_MAX:
            raise StreamRejectedError(
                _Code.RESOURCE_EXHAUSTED, "too_many_boots", "boot_id: expected fewer new ones"
            )
        session = Session(
            node=node, boot_id=boot_id, role=role, peer=peer,
            metrics=self._ledger.delivery((node, boot_id, "metrics")),
            events=self._ledger.delivery((node, boot_id, "events")),
        )  # fmt: skip
        self._open[node, role] = session
        return session

    def leave(self, session: Session) -> bool:
        """Note a stream's end; False when a newer one has its place already."""
        place = session.node, session.role
        if self._open.get(place) is not session:
            return False
        del self._open[place]
        return True

    def release(self, node: str) -> bool:
        """Let go of a node without streams: its ledger memory and its lock. False while it has any."""
        if any((node, role) in self._open for role in ROLES.values()):
            return False
        self._ledger.release(node)
        if self._locks is not None:
            self._locks.release(node)
        return True

    @property
    def sessions(self) -> list[Session]:
        """Return all open streams."""
        return list(self._open.values())

    def of_node(self, node: str) -> list[Session]:
        """Return one node's open streams."""
        found = (self._open.get((node, role)) for role in ROLES.values())
        return [session for session in found if session is not None]


def check_hello(hello: pb.Hello) -> None:
    """Check what every Hello must have. Raises StreamRejectedError."""
    if hello.schema_version != SCHEMA_VERSION:
        raise StreamRejectedError(
            _Code.FAILED_PRECONDITION,
            "schema_version",
            f"hello.schema_version: expected {SCHEMA_VERSION}, got {hello.schema_version}; update one side",
        )
    if not is_valid_node_name(hello.node):
        raise _bad_hello("node", "a host name", hello.node)
    if not _BOOT_ID.match(hello.boot_id):
        raise _bad_hello("boot_id", "up to 100 letters and digits", hello.boot_id)
    if hello.role not in ROLES:
        raise _bad_hello("role", "live or backlog", str(hello.role))
    if hello.sent_ns <= 0:
        raise _bad_hello("sent_ns", "the agent's time", str(hello.sent_ns))
    if len(hello.inventory.gpus) > GPUS_MAX:
        raise _bad_hello("inventory.gpus", f"at most {GPUS_MAX}", str(len(hello.inventory.gpus)))
    for one in hello.inventory.gpus:
        if not is_valid_entity(gpu(one.uuid)):
            raise _bad_hello("inventory.gpus.uuid", "a name without spaces, quotes and brackets", one.uuid)


def _bad_hello(field: str, expected: str, got: str) -> StreamRejectedError:
    detail = f"hello.{field}: expected {expected}, got {show(got)}"
    return StreamRejectedError(_Code.INVALID_ARGUMENT, "bad_hello", detail)


def _replace(old: Session, boot_id: str, peer: str) -> None:
    """End the node's old stream, unless another sender's is alive. Raises StreamRejectedError."""
    alive = time.monotonic() - old.heard < ALIVE_S
    if alive and (old.boot_id != boot_id or old.peer != peer):
        raise StreamRejectedError(
            _Code.ALREADY_EXISTS,
            "duplicate_node",
            f"hello.node: {old.node} streams already from {old.peer}, boot {old.boot_id[:40]}",
        )
    detail = "a newer stream of this node took over"
    old.end(StreamRejectedError(_Code.UNAVAILABLE, "replaced", detail))
