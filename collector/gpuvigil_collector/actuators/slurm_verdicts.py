"""Keeps the verdict that a held node's prolog, epilog or health check reads (deploy/slurm/gpuvigil-verdict).

Only where the mode is act, nobody has paused, the lease is ours and Slurm says that the node is drained by
us. What is not renewed lapses by itself, and a prolog then lets work through.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_collector.action import AgentCall, AmbiguousError, Fence, RefusedError
from gpuvigil_collector.actuators.helper import load_private_key
from gpuvigil_collector.actuators.tools import Tools
from gpuvigil_collector.slurm import nodes as slurm_nodes
from gpuvigil_collector.slurm.client import SlurmClient, UnknownError
from gpuvigil_collector.slurm.settings import SlurmSettings
from gpuvigil_collector.slurm.verdict import NodeVerdict
from gpuvigil_collector.tended import HeldNode
from gpuvigil_protos import log
from gpuvigil_protos.text import printable

LASTS_S: Final = 900
_RENEW_S: Final = 300
_AGAIN_S: Final = 60  # after an agent that did not take it
_CALL_S: Final = 5.0
_ROUND_S: Final = 10.0  # agents that do not answer must not make the next look at what is held an old one
_log = log.get("verdicts")


class _Boot(msgspec.Struct, frozen=True):
    boot_id: str


@dataclass(slots=True)
class _Given:
    """A verdict that a node may have. Times are epoch s; sure: the agent said that it took the newest."""

    expires_s: int
    renew_s: int
    sure: bool


@dataclass(slots=True, kw_only=True)
class Verdicts:
    """`tend` is called every few seconds in a thread of its own, `take_back` by the release of a node.

    A node of `held` of which nothing is known yet may have one of an earlier run. _clean: those that have
    none. _barred: the hold, by node, for which there is none any more.
    """

    settings: SlurmSettings
    client: SlurmClient
    call: AgentCall
    held: Callable[[], Sequence[HeldNode] | None]
    sign: Callable[[bytes], bytes]
    now_s: Callable[[], float] = time.time
    _given: dict[str, _Given] = field(default_factory=dict)
    _clean: set[str] = field(default_factory=set)
    _barred: dict[str, str] = field(default_factory=dict)
    _holds: dict[str, str] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)

    def tend(self, fence: Fence) -> None:
        """Give, renew and take back what held nodes need; where they are not known nothing changes."""
        held = self.held()
        if held is None or not (held or self._given):
            return
        try:
            records = self.client.nodes(self.settings.deadline)
        except UnknownError:
            return
        found = {record.name: slurm_nodes.read(record) for record in records}
        self._holds = {one.node: one.action for one in held}
        self._barred = {node: of for node, of in self._barred.items() if self._holds.get(node) == of}
        until_s, names = (
            self.now_s() + _ROUND_S,
            {one.node: slurm_nodes.find(found, one.node) for one in held},
        )
        wanted = {
            one.node: name.name
            for one in held
            if one.refuses and (name := names[one.node]) is not None and name.hold == "ours"
        }
        unsure = {one.node for one in held if one.reachable} - self._clean
        for node in sorted((self._given.keys() | unsure) - (wanted.keys() - self._barred.keys())):
            if self.now_s() < until_s:
                self._drop(node, fence)
        for one in held:
            if one.node in wanted and one.reachable and self.now_s() < until_s:
                self._give(one, wanted[one.node], fence)
        self._clean &= self._holds.keys()

    def take_back(self, node: str, fence: Fence) -> None:
        """Take a node's verdict away before the node takes work again; this hold gets none any more.

        Raises RefusedError: it may still have one, and its prolog would refuse the first job.
        """
        with self._lock(node):
            self._barred[node] = self._holds.get(node, "")
            if why := self._say(node, b"", "", fence):
                self._barred.pop(node, None)
                raise RefusedError(f"the verdict of {node} is not taken back: {why}")
            if (given := self._given.get(node)) is None or given.sure:
                self._given.pop(node, None)  # else the one that is on its way is dropped until it has lapsed
                self._clean.add(node)

    def allow(self, node: str) -> None:
        """Let a node have one again: its release did not come about."""
        self._barred.pop(node, None)

    def _lock(self, node: str) -> threading.Lock:
        return self._locks.setdefault(node, threading.Lock())

    def _give(self, one: HeldNode, name: str, fence: Fence) -> None:
        now_s = int(self.now_s())
        given = self._given.get(one.node)
        if given is not None and now_s < given.renew_s:
            return
        with self._lock(one.node):
            # what held a round ago may not hold now: asked again right before
            if one.node in self._barred or one not in (self.held() or ()):
                return
            why = self._put(one, name, fence, now_s)
            self._given[one.node] = _Given(now_s + LASTS_S, now_s + (_AGAIN_S if why else _RENEW_S), not why)
            self._clean.discard(one.node)
        if why:
            _log.warning("verdict_not_given", node=one.node, why=why)

    def _put(self, one: HeldNode, name: str, fence: Fence, now_s: int) -> str:
        """Sign and hand over; return why not, "" when the node has it."""
        try:
            answer = self.call(one.node, "boot", {}, _CALL_S)
            boot = msgspec.json.decode(answer.outcome, type=_Boot).boot_id if answer.accepted else ""
            text = NodeVerdict(
                node=name, boot=boot, at=self.settings.verdict_at, action=one.action,
                expires_s=now_s + LASTS_S, reason=printable(one.reason)[:200],
            ).text(now_s)  # fmt: skip
        except (AmbiguousError, RefusedError, msgspec.MsgspecError, ValueError) as error:
            return str(error)[:200]
        return self._say(one.node, text, self.sign(text).hex(), fence)

    def _drop(self, node: str, fence: Fence) -> None:
        """Take back what nobody wants any more, again and again until it is taken or has lapsed."""
        now_s = int(self.now_s())
        with self._lock(node):
            given = self._given.setdefault(node, _Given(now_s + LASTS_S, 0, True))
            taken = given.expires_s <= now_s or not self._say(node, b"", "", fence)
            if taken and (given.sure or given.expires_s <= now_s):
                del self._given[node]
                self._clean.add(node)

    def _say(self, node: str, text: bytes, signature: str, fence: Fence) -> str:
        """Have the agent put a verdict, or with no text take it away; return why it did not."""
        arguments = {"text": text.decode(), "signature": signature, "generation": str(fence.generation)}
        try:
            answer = self.call(node, "verdict", arguments, _CALL_S)
        except (AmbiguousError, RefusedError) as error:
            return str(error)[:200]
        return "" if answer.accepted else answer.outcome[:200] or "refused"


def make(tools: Tools, settings: SlurmSettings, client: SlurmClient) -> Verdicts | None:
    """Make it where a key is named. Raises ConfigError."""
    if not settings.verdict_key or tools.agent is None:
        return None
    key = load_private_key(Path(settings.verdict_key), "slurm verdict_key")
    return Verdicts(settings=settings, client=client, call=tools.agent, held=tools.held, sign=key.sign)
