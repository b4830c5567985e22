"""The helper's desk: a message in, an answer out. An order passes check, ledger, refusals, in this order.

Every answer carries what was observed. What nobody may know or do is refused before anything is used up.
"""

from __future__ import annotations

import threading
import time
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gpuvigil_helper import check
from gpuvigil_helper.config import HelperConfig
from gpuvigil_helper.effects import Effects, LetGo, RefusedError
from gpuvigil_helper.hold import HoldFile
from gpuvigil_helper.ledger import EffectState, Ledger, LedgerError, SeenError
from gpuvigil_protos import log, pause
from gpuvigil_protos.order import TEXT_MAX, Order

MESSAGE_MAX: Final = 8192
_SHOWN_MAX: Final = 300
_log = log.get("helper")
_Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="ask", tag="order"):
    """An order, as it was signed."""

    order: _Text
    signature: _Text


class LookUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="ask", tag="look"):
    """What is so now? action: whose effect is asked about; unit: whose state. Changes nothing."""

    action: _Text = ""
    unit: _Text = ""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. state: refused, would (act is off), done, failed, unknown, intended (a reboot)."""

    accepted: bool
    state: str
    outcome: str
    boot_id: str


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a look. effect: "none" where it never began. held: whose hold, "" for none."""

    boot_id: str
    act: bool
    effect: str
    detail: str
    held: str
    paused: str
    unit: str


class Desk:
    """Decides and carries out; any thread may ask, one order at a time is carried out."""

    def __init__(
        self, config: HelperConfig, node: str, key: Ed25519PublicKey, ledger: Ledger, boot_id: str,
        effects: Effects, hold: HoldFile,
    ) -> None:  # fmt: skip
        self._config, self._node, self._key = config, node, key
        self._ledger, self._effects, self._hold = ledger, effects, hold
        self._boot_id = boot_id
        self._one = threading.Lock()

    def answer(self, message: bytes, let_go: LetGo) -> Said | Seen:
        """Answer one message; never raises for what came from outside."""
        try:
            asked = msgspec.json.decode(message[:MESSAGE_MAX], type=Ask | LookUp)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._said("refused", f"message: {str(error)[:150]}")
        if isinstance(asked, LookUp):
            return self._look(asked)
        return self._order(asked, let_go)

    def busy(self) -> bool:
        """True while an order is being carried out."""
        return self._one.locked()

    def _said(self, state: str, outcome: str) -> Said:
        text = outcome[:_SHOWN_MAX]
        return Said(accepted=state in ("done", "intended"), state=state, outcome=text, boot_id=self._boot_id)

    def _order(self, asked: Ask, let_go: LetGo) -> Said:
        try:
            order = check.check(asked.order.encode(), asked.signature, self._key, self._node, time.time_ns())
        except (check.ForgedError, UnicodeEncodeError) as error:
            _log.warning("order_refused", reason=str(error))
            return self._said("refused", str(error))
        if not self._one.acquire(blocking=False):
            return self._said("refused", "another order is being carried out")
        try:
            said = self._once(order, let_go)
        finally:
            self._one.release()
        _log.warning(
            "order_answered", verb=order.verb, target=order.target, incident=order.incident,
            action=order.action, generation=order.generation, state=said.state, outcome=said.outcome,
        )  # fmt: skip
        return said

    def _once(self, order: Order, let_go: LetGo) -> Said:
        """Use the order up, and then do it or say why not."""
        try:
            self._ledger.take(order)
        except (SeenError, LedgerError) as error:
            return self._said("refused", str(error))
        try:
            if not self._config.act:
                self._effects.refusals(order)
                return self._said("would", f"would {_words(order)}; act is off in this node's config")
            state, outcome = self._effects.carry_out(order, let_go)
            if state != "intended":
                self._ledger.end(order.nonce, state, outcome)
            return self._said(state, outcome)
        except (RefusedError, LedgerError) as error:
            return self._said(self._began(order), str(error))
        except OSError as error:
            return self._said(self._began(order), f"this node's disk or system: {error.strerror}")

    def _began(self, order: Order) -> str:
        """Say refused when nothing has begun, else what is known: an error in the middle is no refusal."""
        try:
            found = self._ledger.effects("nonce = ?", (order.nonce,))
        except LedgerError:
            return "unknown"
        state: EffectState | str = found[-1].state if found else "refused"
        return "unknown" if state == "intended" else state

    def _look(self, asked: LookUp) -> Seen:
        effect, detail = "none", ""
        try:
            if asked.action and (found := self._ledger.of_action(asked.action)) is not None:
                effect, detail = found.state, found.detail
        except LedgerError as error:
            effect, detail = "unknown", str(error)
        held = self._hold.read()
        return Seen(
            boot_id=self._boot_id, act=self._config.act, effect=effect, detail=detail[:100],
            held=held.incident if held else "", paused=pause.paused(self._config.pause_files)[:100],
            unit=self._effects.unit_state(asked.unit) if asked.unit else "",
        )  # fmt: skip


def _words(order: Order) -> str:
    return f"{order.verb} {order.target}".strip()
