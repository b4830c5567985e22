"""The link to the collector: keeps one connection, live data first, and what the answer codes mean.

Every attempt makes a new channel from the files as they are now and waits until it is ready before the old
one is closed. Waits are fully jittered. What the collector refuses for good goes to the dead letters.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import grpc.aio

from gpuvigil_agent import channel as channels
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.link_proof import Proven, prove
from gpuvigil_agent.session import Session, SessionEndedError
from gpuvigil_agent.spool import Spool
from gpuvigil_agent.spool_store import Row
from gpuvigil_agent.wire import clean
from gpuvigil_protos import log
from gpuvigil_protos.settings import ConfigError
from gpuvigil_protos.v1 import stream_pb2 as pb

_FIRST_BACKOFF_S: Final = 0.5
_LOOK_S: Final = 30.0  # between looks at the TLS files
_STEADY_S: Final = 10.0  # a session that lived this long forgives the failures before it
_REFUSALS: Final = {  # a person has to act: what to say, after how many answers of this kind in a row
    "PERMISSION_DENIED": (1, "the certificate must name this node"),
    "FAILED_PRECONDITION": (1, "agent and collector must be of one schema version: update one"),
    "UNIMPLEMENTED": (1, "no gpuvigil collector is at this address"),
    # right after an agent's restart its own old stream may still be there for some seconds
    "ALREADY_EXISTS": (4, "another agent uses this node name: rename one or stop it"),
}
_log = log.get("stream")


class Stream:
    """Start `run` as a task; `offer` hands it what is new; it reads the rest from the spool itself."""

    def __init__(
        self,
        config: AgentConfig,
        node: str,
        spool: Spool,
        inventory: Callable[[], pb.Inventory],
        dictionary: Callable[[], pb.Dictionary],
        on_setting: Callable[[float], None],
        answer: Callable[[pb.Command], Awaitable[pb.CommandResult]],
    ) -> None:
        self.config, self.node, self.spool = config, node, spool
        self.inventory, self.dictionary, self.on_setting = inventory, dictionary, on_setting
        self.answer = answer
        self.state = "connecting"
        self.reason = ""  # why it is not live, one line for people
        self.counters: dict[str, int] = {
            "connects": 0, "failures": 0, "batches_sent": 0, "events_sent": 0, "backlog_sent": 0,
            "bytes_sent": 0, "acks": 0, "refusals": 0, "commands": 0, "settings": 0, "live_overflows": 0,
        }  # fmt: skip
        self.failures: dict[str, int] = {}
        self._session: Session | None = None
        self._channel: grpc.aio.Channel | None = None
        self._proven: Proven | None = None
        self._kick = asyncio.Event()
        self._marks = channels.fingerprint(config.tls)
        self._attempt = 0
        self._cautious = False
        self._last_said = ""
        self._last_word, self._in_a_row = "", 0

    @property
    def connected(self) -> bool:
        """True while a live stream is welcomed."""
        return self._session is not None and self._session.live

    def offer(self, row: Row, dictionary: pb.Dictionary | None = None) -> None:
        """Send a new message at once where a live stream is up; otherwise the spool has it."""
        if self._session is not None:
            self._session.offer(row, dictionary)

    def tell_inventory(self) -> bool:
        """Tell the collector the new inventory; False when nobody could be told now.

        A stream that waits for its Welcome has said Hello already, perhaps with the old inventory.
        """
        return self._session is not None and self._session.offer_hello()

    async def change(self, config: AgentConfig) -> None:
        """Take new settings or renewed TLS files.

        While a link lives, the new one is proven beside it first. Raises ConfigError: the old one stays.
        """
        same = (config.collector, config.tls) == (self.config.collector, self.config.tls)
        if not same or channels.fingerprint(config.tls) != self._marks:
            if self.connected:
                proven = await prove(self, config)
                await self._drop_proven()
                self._proven = proven
            self._attempt = 0
            self._kick.set()
        self.config = config

    async def run(self) -> None:
        """Stay connected until cancelled."""
        try:
            while True:
                await self._once()
        finally:
            await self._drop_channel()
            await self._drop_proven()

    async def _once(self) -> None:
        self._kick.clear()
        started = time.monotonic()
        try:
            await self._connect_and_serve()
        except grpc.aio.AioRpcError as error:
            await self._failed(error.code().name, error.details() or "")
        except channels.UnreachableError as error:
            await self._failed("unreachable", str(error))
        except TimeoutError:
            await self._failed("timeout", "the collector took the connection and does not answer")
        except (ConfigError, SessionEndedError) as error:
            await self._failed(type(error).__name__, str(error))
        finally:
            self._session = None
        if time.monotonic() - started > _STEADY_S:
            self._attempt = min(self._attempt, 1)

    async def _connect_and_serve(self) -> None:
        self.state = "connecting"
        fresh, self._marks = await self._fresh_channel()
        await self._drop_channel()
        self._channel = fresh
        session = self._session = Session(self, fresh, cautious=self._cautious)
        serving = asyncio.ensure_future(session.serve())
        kicked = asyncio.ensure_future(self._until_kicked())
        try:
            await asyncio.wait({serving, kicked}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            for task in (serving, kicked):
                task.cancel()
            await asyncio.gather(serving, kicked, return_exceptions=True)

    async def _fresh_channel(self) -> Proven:
        """Return the channel that was proven while the old one served, or a new one that is connected."""
        proven, self._proven = self._proven, None
        if proven is not None:
            return proven
        config = self.config
        marks = channels.fingerprint(config.tls)
        fresh = channels.open_channel(config)
        try:
            await channels.until_ready(fresh, config.collector.address, config.collector.connect_timeout)
        except BaseException:
            await fresh.close(None)
            raise
        return Proven(fresh, marks)

    async def _until_kicked(self) -> None:
        """Return when settings or TLS files changed and the link that they make is proven."""
        said = ""
        while not self._kick.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._kick.wait(), _LOOK_S)
            if channels.fingerprint(self.config.tls) == self._marks:
                continue
            try:
                await self.change(self.config)
            except ConfigError as error:
                self.failures["renewal"] = self.failures.get("renewal", 0) + 1
                if said != str(error):
                    said = str(error)
                    _log.error("renewed_tls_refused", reason=said, note="the old link stays")

    async def _drop_channel(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    async def _drop_proven(self) -> None:
        proven, self._proven = self._proven, None
        if proven is not None:
            await proven.channel.close(None)

    def welcomed(self) -> None:
        """Called by the session once the collector has welcomed it."""
        self.state = "live"
        self.counters["connects"] += 1
        self._cautious = False
        self.reason = self._last_word = self._last_said = ""
        _log.info("stream_live", collector=self.config.collector.address)

    async def _failed(self, word: str, detail: str) -> None:
        """Count, log on change, and wait: full jitter, and never fast where a person has to act."""
        self.counters["failures"] += 1
        self.failures[word] = self.failures.get(word, 0) + 1
        was_live = self._session is not None and self._session.live
        self._cautious = word == "INVALID_ARGUMENT" and was_live
        self._attempt += 1
        self._in_a_row = self._in_a_row + 1 if word == self._last_word else 1
        self._last_word = word
        limit = self.config.collector.backoff_max
        wait_s = random.uniform(0, min(limit, _FIRST_BACKOFF_S * 2 ** min(self._attempt, 16)))
        self.state, self.reason = "backoff", clean(detail or word, 300)
        patience, advice = _REFUSALS.get(word, (0, ""))
        if advice and self._in_a_row >= patience:
            self.state, wait_s = "refused", random.uniform(limit / 2, limit)
            self.reason = f"{self.reason}: {advice}"
        self._say(word)
        try:
            await asyncio.wait_for(self._kick.wait(), wait_s)
        except TimeoutError:
            return

    def _say(self, word: str) -> None:
        """Log a failure when it is another one than before."""
        said = f"{self.state} {word} {self.reason if word == 'unreachable' else ''}"
        if said != self._last_said:
            event = "stream_refused" if self.state == "refused" else "stream_lost"
            _log.warning(event, reason=word, detail=self.reason, collector=self.config.collector.address)
        self._last_said = said
