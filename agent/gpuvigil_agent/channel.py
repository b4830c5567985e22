"""A channel to the collector: TLS from files, or plain text on loopback; keepalive and size limits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from gpuvigil_agent.config import AgentConfig
from gpuvigil_protos.codec import MESSAGE_MAX_BYTES
from gpuvigil_protos.settings import ConfigError, Tls

_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.enable_retries", 0),  # the spool retries; a second retrier would hide what happens
    ("grpc.enable_http_proxy", 0),  # telemetry never leaves through a proxy of the environment
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),  # a new channel is a new connection, with the files as they are now
)
_CAUSES: Final = (
    ("connection refused", "connection refused"),
    ("no route to host", "no route"),
    ("network is unreachable", "no route"),
    ("name resolution", "name not found"),
    ("dns resolution", "name not found"),
    ("domain name not found", "name not found"),
    ("certificate", "TLS refused: certificate"),
    ("handshak", "TLS refused: handshake failed"),
    ("ssl", "TLS refused: handshake failed"),
    ("socket closed", "closed by the other side (TLS on one side alone, or a certificate it does not trust)"),
    ("connection reset", "connection reset"),
    ("timed out", "no answer"),
    ("timeout", "no answer"),
)


def open_channel(config: AgentConfig) -> grpc.aio.Channel:
    """Make a channel. It does not connect yet. Raises ConfigError when a TLS file cannot be read."""
    address = config.collector.address
    if not config.tls.enabled:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    return grpc.aio.secure_channel(address, _credentials(config.tls), options=_OPTIONS)


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    files = []
    for name in ("ca", "key", "certificate"):
        path = Path(getattr(tls, name))
        try:
            files.append(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"tls.{name}: {path} cannot be read: {error.strerror}") from None
    return grpc.ssl_channel_credentials(*files)


def fingerprint(tls: Tls) -> tuple[tuple[int, int], ...]:
    """Return what changes when a TLS file is renewed: modification time and size of each."""
    found = []
    for file in (tls.certificate, tls.key, tls.ca) if tls.enabled else ():
        try:
            status = Path(file).stat()
        except OSError:
            continue
        found.append((status.st_mtime_ns, status.st_size))
    return tuple(found)


class UnreachableError(Exception):
    """Nobody answers at the address; the text says what happened there, for people."""


async def until_ready(channel: grpc.aio.Channel, address: str, timeout_s: float) -> None:
    """Connect. Raises UnreachableError as soon as an attempt has failed, or when the time is up."""
    try:
        async with asyncio.timeout(timeout_s):
            state = channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise UnreachableError(f"{await _why(channel)} at {address}")
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        raise UnreachableError(f"no answer within {timeout_s:g} s at {address}") from None


async def _why(channel: grpc.aio.Channel) -> str:
    """Return why a channel failed: any call on it ends at once, with the cause in its details."""
    try:
        await channel.unary_unary("/", request_serializer=None)(b"", timeout=1)
    except grpc.aio.AioRpcError as error:
        detail = error.details() or ""
        found = next((words for mark, words in _CAUSES if mark in detail.lower()), "")
        return found or f"unreachable ({detail.rpartition('last error: ')[2][:200]})"
    return "unreachable"
