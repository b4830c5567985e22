"""The gRPC face of a worker: reads a stream, hands its messages to the intake, writes what is to be told."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import Final, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.admission import Admission, check_hello
from gpuvigil_collector.ingest.brain_link import BrainLink
from gpuvigil_collector.ingest.intake import Intake
from gpuvigil_collector.ingest.refusal import StreamRejectedError
from gpuvigil_collector.ingest.session import ROLES, Session
from gpuvigil_collector.ingest.validate import clean_text
from gpuvigil_protos.codec import MESSAGE_MAX_BYTES, SCHEMA_VERSION
from gpuvigil_protos.v1 import stream_pb2 as pb

HELLO_TIMEOUT_S: Final = 10.0
RECEIVE_MAX_BYTES: Final = 2 * MESSAGE_MAX_BYTES
_TEXT_MAX: Final = 200
_Context: TypeAlias = grpc.aio.ServicerContext
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["TelemetryService"].full_name


class Received(NamedTuple):
    """A message as it came: its size on the wire, and None where it is no message of ours."""

    size: int
    request: pb.StreamRequest | None


def _parse(data: bytes) -> Received:
    try:
        return Received(len(data), pb.StreamRequest.FromString(data))
    except DecodeError:
        return Received(len(data), None)


class Service:
    """TelemetryService of one worker."""

    def __init__(self, admission: Admission, intake: Intake, brain: BrainLink, name: str) -> None:
        self._admission = admission
        self._intake = intake
        self._brain = brain
        self._name = name
        self.stopping = False

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to register. Parsing is ours: a broken message gets an answer, not a trace."""
        stream = grpc.stream_stream_rpc_method_handler(
            self._stream, request_deserializer=_parse, response_serializer=pb.StreamResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(_SERVICE, {"Stream": stream})

    async def _stream(self, _requests: object, context: _Context) -> None:
        try:
            hello = await _first(context)
            if hello is not None:
                await self._serve(hello, context)
        except StreamRejectedError as rejected:
            self._intake.counters[f"rejected_streams_total:{rejected.reason}"] += 1
            await context.abort(rejected.code, rejected.detail)

    async def _serve(self, first: Received, context: _Context) -> None:
        session = self._open(first, context)
        try:
            # first and alone: a command may wait already, and a stream takes one write at a time
            await context.write(session.welcome(self._name, SCHEMA_VERSION))
            await self._converse(session, context)
        except asyncio.CancelledError:
            if session.ending is None:
                raise
            raise session.ending from None
        finally:
            self._close(session)

    async def _converse(self, session: Session, context: _Context) -> None:
        """Receive until the stream ends; meanwhile write what falls due."""
        writer = asyncio.create_task(_write(session, context))
        try:
            await self._receive(session, context)
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.BaseError):
                await writer

    def _open(self, first: Received, context: _Context) -> Session:
        received_ns = time.time_ns()
        if first.request is None or first.request.WhichOneof("message") != "hello" or self.stopping:
            raise _unexpected(self.stopping)
        hello = first.request.hello
        session = self._admission.admit(hello, _peer_host(context.peer()), _certificate_names(context))
        session.task = asyncio.current_task()
        session.echo_ns = hello.sent_ns
        session.clock.observe(received_ns, hello.sent_ns)
        if session.live:
            self._brain.send(_node_up(hello, session, received_ns))
        if hello.HasField("dictionary"):
            self._intake.learn_dictionary(session, hello.dictionary)
        return session

    def _close(self, session: Session) -> None:
        if self._admission.leave(session) and session.live:
            self._brain.send(frames.NodeDown(session.node, time.time_ns()))

    async def _receive(self, session: Session, context: _Context) -> None:
        while (received := await _next(context)) is not None:
            if self.stopping:
                raise _unexpected(stopping=True)
            if received.request is None:
                detail = "message: expected a StreamRequest, got bytes that are none"
                raise StreamRejectedError(grpc.StatusCode.INVALID_ARGUMENT, "bad_message", detail)
            if received.request.WhichOneof("message") == "hello":
                self._hello_again(session, received.request.hello)
            else:
                self._intake.take(session, received.request, received.size)

    def _hello_again(self, session: Session, hello: pb.Hello) -> None:
        """Take a Hello in mid-stream: the inventory has changed, who speaks has not."""
        speaker = (hello.node, hello.boot_id, ROLES.get(hello.role))
        if speaker != (session.node, session.boot_id, session.role):
            detail = f"hello.node: expected {session.node} and its boot for the whole stream"
            raise StreamRejectedError(grpc.StatusCode.PERMISSION_DENIED, "wrong_name", detail)
        check_hello(hello)
        session.heard = time.monotonic()
        if session.live:
            self._brain.send(_node_up(hello, session, time.time_ns()))


async def _first(context: _Context) -> Received | None:
    """Return the first message. Raises StreamRejectedError when none comes in time."""
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            return await _next(context)
    except TimeoutError:
        detail = f"hello: expected within {HELLO_TIMEOUT_S:g} s"
        raise StreamRejectedError(grpc.StatusCode.UNAVAILABLE, "idle", detail) from None


async def _next(context: _Context) -> Received | None:
    """Return the next message, None at the end. The worker ends streams that stay idle."""
    received = await context.read()
    return received if isinstance(received, Received) else None


async def _write(session: Session, context: _Context) -> None:
    """Write Acks and Refusals as they fall due; many that fall due together are one Ack."""
    while True:
        await session.due.wait()
        for reply in session.replies():
            await context.write(reply)


def _unexpected(stopping: bool) -> StreamRejectedError:
    if stopping:
        return StreamRejectedError(grpc.StatusCode.UNAVAILABLE, "stopping", "the collector stops; try again")
    detail = "message: expected hello first"
    return StreamRejectedError(grpc.StatusCode.INVALID_ARGUMENT, "bad_message", detail)


def _peer_host(peer: str) -> str:
    """Cut the port off `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`."""
    return peer.rpartition(":")[0] if re.search(r":\d+$", peer) else peer


def _certificate_names(context: _Context) -> frozenset[str] | None:
    """Return the names in the client's certificate; None in plain text."""
    auth = context.auth_context()
    if b"ssl" not in auth.get("transport_security_type", ()):
        return None
    names = auth.get("x509_subject_alternative_name", ())
    return frozenset(name.decode("utf-8", "replace") for name in names)


def _node_up(hello: pb.Hello, session: Session, time_ns: int) -> frames.NodeUp:
    inventory = hello.inventory
    return frames.NodeUp(
        session.node,
        session.boot_id,
        time_ns,
        session.clock.offset_ns,
        _short(hello.agent_version),
        _short(inventory.gpu_source),
        _short(inventory.note),
        _short(inventory.driver_version),
        [(_short(g.uuid), g.index, _short(g.model), _short(g.pci_bus_id), g.seen) for g in inventory.gpus],
    )


def _short(text: str) -> str:
    return clean_text(text[:_TEXT_MAX])
