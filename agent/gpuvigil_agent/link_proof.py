"""A new link is proven before the old one goes: the collector welcomes this node over it first."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import grpc.aio

from gpuvigil_agent import channel as channels
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.session import Session, SessionEndedError
from gpuvigil_agent.wire import clean
from gpuvigil_protos.settings import ConfigError
from gpuvigil_protos.v1 import stream_pb2 as pb

if TYPE_CHECKING:
    from gpuvigil_agent.stream import Stream


class Proven(NamedTuple):
    """A channel that works, and the marks of the TLS files that it was made from."""

    channel: grpc.aio.Channel
    marks: tuple[tuple[int, int], ...]


async def prove(stream: Stream, config: AgentConfig) -> Proven:
    """Connect with `config` and be welcomed, as backlog, which disturbs no live stream.

    Raises ConfigError that says what stands in the way.
    """
    marks = channels.fingerprint(config.tls)
    config.tls.check("new link")
    fresh = channels.open_channel(config)
    try:
        await channels.until_ready(fresh, config.collector.address, config.collector.connect_timeout)
        session = Session(stream, fresh, cautious=False)
        call, _ = await session.open(pb.ROLE_BACKLOG, session.boot_id, None)
        call.cancel()
    except BaseException as error:
        await fresh.close(None)
        if (reason := _reason_of(error)) is None:
            raise
        text = f"new link: expected a welcome at {config.collector.address}, got {clean(reason, 300)}"
        raise ConfigError(text) from None
    return Proven(fresh, marks)


def _reason_of(error: BaseException) -> str | None:
    """Return why a link does not work; None for what is no trouble of a link."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details() or ''}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, channels.UnreachableError | SessionEndedError):
        return str(error)
    return None
