"""The privileged helper as an actuator: reset of a GPU, reboot, stop of a job's unit on a plain host.

Orders are signed here and judged by the node's helper alone; the agent between only carries them. What
became of an effect is in the helper's own ledger, under the action's id: a look asks for it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gpuvigil_collector.action import (
    Action,
    AgentCall,
    AmbiguousError,
    Fence,
    Kind,
    Look,
    RefusedError,
)
from gpuvigil_collector.actuators.tools import Tools, names
from gpuvigil_collector.process import within
from gpuvigil_protos import order as orders
from gpuvigil_protos.order import Order, OrderError, OrderVerb
from gpuvigil_protos.settings import ConfigError

_LOOK_S: Final = 10.0
_LIFETIME_S: Final = orders.LIFETIME_MAX_S - 5  # its clock may be behind ours
_VERBS: Final[dict[Kind, OrderVerb]] = {
    "reset_gpu": "reset_gpu", "reboot": "reboot", "stop_job": "stop_unit"
}  # fmt: skip


class _Seen(msgspec.Struct, frozen=True):
    boot_id: str
    effect: str
    detail: str = ""
    unit: str = ""


class _Booted(msgspec.Struct, frozen=True):
    boot_id: str
    helper: _Seen | str


class _Said(msgspec.Struct, frozen=True):
    state: str
    outcome: str


class Signer:
    """Signs orders with the collector's key. Numbers are times: they grow over restarts too."""

    def __init__(self, file: Path) -> None:
        self._key = load_private_key(file)
        self._last, self._lock = 0, threading.Lock()

    def sign(self, order: Order) -> tuple[str, str]:
        """Return an order's text and its signature in hex, after a last check. Raises OrderError."""
        text = orders.encode(order)
        orders.decode(text)
        return text.decode(), self._key.sign(orders.signed_bytes(text)).hex()

    def number(self) -> int:
        """Return the next order's number."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns())
            return self._last


def load_private_key(file: Path, what: str = "helper key") -> Ed25519PrivateKey:
    """Read a signing key of the collector's; what: its name in the configuration. Raises ConfigError."""
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"{what}: {file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{what}: expected a PEM private key without a password in {file}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{what}: expected an Ed25519 key in {file}, got another kind")
    return key


class HelperActuator:
    """One order an apply. unit: how a job's unit is called, with {job} in it."""

    name = "helper"
    kinds: frozenset[Kind] = frozenset(_VERBS)

    def __init__(self, call: AgentCall, signer: Signer, unit: str = "{job}.service") -> None:
        self._call, self._signer, self._unit = call, signer, unit

    def look(self, action: Action) -> Look:
        """Ask the helper what became of this action, and what boot or unit state there is."""
        proposal = action.proposal
        arguments = {"action": proposal.id} | ({"unit": self._target(action)} if proposal.job else {})
        try:
            names(action)
            answer = self._call(proposal.node, "boot", arguments, _LOOK_S)
            found = msgspec.json.decode(answer.outcome, type=_Booted) if answer.accepted else None
        except (RefusedError, AmbiguousError) as error:
            return Look(state="unknown", detail=str(error)[:200])
        except (msgspec.DecodeError, UnicodeEncodeError):
            return Look(state="unknown", detail="the agent's answer is no look of a helper")
        if found is None:
            return Look(state="unknown", detail=answer.outcome[:200])
        if isinstance(found.helper, str):
            return Look(state="unknown", detail=found.helper[:200], token=found.boot_id)
        return _judge(action, found.helper)

    def apply(self, action: Action, fence: Fence) -> str:
        """Sign the order and have it carried out. Raises RefusedError, AmbiguousError."""
        proposal = action.proposal
        names(action)
        # an order outlives neither its deadline nor the right to give it: the helper judges by its own clock
        seconds = min(within(fence, proposal.deadline_s, time.time_ns()), _LIFETIME_S)
        until_ns = time.time_ns() + int(seconds * 1e9)
        order = Order(
            verb=_VERBS[proposal.kind], node=proposal.node, target=self._target(action), action=proposal.id,
            incident=proposal.incident, nonce=secrets.token_hex(16), number=self._signer.number(),
            generation=fence.generation, expires_ns=until_ns,
        )  # fmt: skip
        try:
            text, signature = self._signer.sign(order)
        except OrderError as error:
            raise RefusedError(f"no such order can be given: {error}") from None
        answer = self._call(
            proposal.node, "helper", {"order": text, "signature": signature}, proposal.deadline_s
        )
        if not answer.accepted:
            raise RefusedError(f"the agent did not pass it on: {answer.outcome[:300]}")
        try:
            said = msgspec.json.decode(answer.outcome, type=_Said)
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise AmbiguousError("the agent's answer is not the helper's") from None
        if said.state in ("refused", "would", "failed"):
            raise RefusedError(f"{said.state}: {said.outcome[:300]}")
        if said.state not in ("done", "intended"):
            raise AmbiguousError(f"{said.state[:20]}: {said.outcome[:300]}")
        return said.outcome[:300]

    def _target(self, action: Action) -> str:
        proposal = action.proposal
        if proposal.kind == "stop_job":
            return self._unit.replace("{job}", proposal.job)
        return proposal.gpu if proposal.kind == "reset_gpu" else ""


def _judge(action: Action, seen: _Seen) -> Look:
    """Say where the effect stands by what the helper saw."""
    detail = f"helper: {seen.effect[:20]}{seen.detail and ': '}{seen.detail[:150]}"
    kind = action.proposal.kind
    if seen.effect == "done":
        return Look(state="done", detail=detail, token=seen.boot_id)
    if kind == "stop_job" and seen.unit in ("inactive", "failed"):
        return Look(state="done", detail=f"the unit is {seen.unit}", token=seen.boot_id)
    if seen.effect not in ("none", "failed") or (kind == "stop_job" and not seen.unit):
        return Look(state="unknown", detail=detail, token=seen.boot_id)
    if kind == "reboot" and action.before and action.before != seen.boot_id:
        return Look(
            state="foreign", detail="the node was rebooted, and not by this action", token=seen.boot_id
        )
    return Look(state="absent", detail=detail, token=seen.boot_id)


def make(tools: Tools) -> Iterable[HelperActuator]:
    """Make it where the settings ask for it."""
    asked = tools.settings.helper
    if tools.agent is None or asked is None:
        return []
    return [HelperActuator(tools.agent, Signer(Path(asked.key)), asked.unit)]
