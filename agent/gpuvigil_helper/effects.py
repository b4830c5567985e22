"""The fixed verbs: what each refuses, and what it does. Everything here runs only after check and ledger.

Order of a verb: every refusal first, then the write-ahead row, then the effect. RefusedError means that
nothing has happened.
"""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Callable, Mapping
from typing import Final

from gpuvigil_helper import tools
from gpuvigil_helper.config import HelperConfig
from gpuvigil_helper.hold import HoldFile
from gpuvigil_helper.ledger import EffectState, Ledger
from gpuvigil_helper.reset import Reset
from gpuvigil_protos import pause
from gpuvigil_protos.order import Order

_HOUR_S: Final = 3600.0
_DAY_S: Final = 86400.0
_LOOK_S: Final = 10.0

LetGo = Callable[[bool], bool]
"""Ask the agent to let go of the GPUs (True) or to take them again (False); False when it did not."""
Outcome = tuple[EffectState, str]


class RefusedError(Exception):
    """Nothing has happened; the text says why."""


class Effects:
    """Carries out what was checked. One at a time."""

    def __init__(self, config: HelperConfig, ledger: Ledger, hold: HoldFile) -> None:
        self._config, self._ledger, self._hold = config, ledger, hold
        self._reset = Reset(config, ledger)

    def restore(self) -> None:
        """Start what an earlier run had let go and still owes."""
        self._reset.restore()

    def refusals(self, order: Order) -> None:
        """Refuse what must not be: pause, limits, protected jobs, foreign units. Raises RefusedError."""
        self._check_pause()
        if order.verb in _INTERRUPTS:
            self._check_limits(order)
            self._check_protected(order)
        if order.verb == "stop_unit" and not self._may_stop(order.target):
            raise RefusedError(f"target: unit {order.target} is not allowed by stop.allow")

    def carry_out(self, order: Order, let_go: LetGo) -> Outcome:
        """Do it, once, written down before. Raises RefusedError before anything has happened.

        An action that was carried out, or may have been, is not carried out again under a new nonce.
        """
        self._check_pause()
        had = self._ledger.of_action(order.action) if order.verb in _INTERRUPTS else None
        if had is not None and (had.verb, had.target) == (order.verb, order.target) and had.state != "failed":
            return had.state, f"this action was carried out before: {had.state} {had.detail}".rstrip()
        self.refusals(order)
        return self._VERBS[order.verb](self, order, let_go)

    def _begin(self, order: Order) -> None:
        """The last look at pause and clock, then the write-ahead row."""
        self._check_pause()
        if order.expires_ns <= time.time_ns():
            raise RefusedError("expires_ns: it expired while everything was made ready")
        self._ledger.begin(order)

    def _check_pause(self) -> None:
        if why := pause.paused(self._config.pause_files):
            raise RefusedError(f"paused: {why}")

    def _check_limits(self, order: Order) -> None:
        limits = self._config.limits
        most, span_s, words = {
            "reset_gpu": (limits.resets_a_gpu_an_hour, _HOUR_S, "resets of this GPU an hour"),
            "reboot": (limits.reboots_a_day, _DAY_S, "reboots a day"),
            "stop_unit": (limits.stops_an_hour, _HOUR_S, "stops of this unit an hour"),
        }[order.verb]
        had = len(self._ledger.within(order.verb, order.target, span_s))
        if had >= most:
            raise RefusedError(f"limit of this node: {most} {words}, had {had}")

    def _check_protected(self, order: Order) -> None:
        protected = self._config.protected
        for pattern in protected.paths:
            if found := glob.glob(pattern):  # noqa: PTH207 - an absolute pattern
                raise RefusedError(f"a protected job runs: {found[0]}")
        if not protected.units:
            return
        states = "--state=active,activating,reloading,deactivating"
        command = [*self._config.systemctl, "list-units", "--plain", "--no-legend", "--no-pager", states]
        ran = tools.run([*command, "--", *protected.units], {}, _LOOK_S)
        if ran.status != 0:
            raise RefusedError(f"whether a protected job runs cannot be told: {ran.words}")
        if units := ran.output.split():
            raise RefusedError(f"a protected job runs: {units[0][:100]}")

    def _may_stop(self, unit: str) -> bool:
        allow = self._config.stop.allow
        return bool(allow) and re.fullmatch(allow, unit) is not None

    def unit_state(self, unit: str) -> str:
        """Return systemd's word for a unit that may be stopped, "" where nobody can tell."""
        if not self._may_stop(unit):
            return ""
        command = [*self._config.systemctl, "show", "-P", "ActiveState", "--", unit]
        ran = tools.run(command, {}, _LOOK_S)
        word = ran.output.strip()
        return word if ran.status == 0 and word.isalpha() else ""

    def _stop_unit(self, order: Order, _let_go: LetGo) -> Outcome:
        self._begin(order)
        stop = self._config.stop
        ran = tools.run(stop.command, {"unit": order.target}, stop.deadline)
        state = self.unit_state(order.target)
        if state in ("inactive", "failed"):
            return "done", f"{order.target} is {state}"
        return ("unknown" if ran.status is None else "failed"), f"{order.target}: {state}: {ran.words}"

    def _reboot(self, order: Order, _let_go: LetGo) -> Outcome:
        self._begin(order)
        ran = tools.run(self._config.reboot.command, {}, self._config.reboot.deadline)
        if ran.status == 0:
            return "intended", "the reboot has begun"  # a new boot id makes it done
        return ("unknown" if ran.status is None else "failed"), f"reboot: {ran.words}"

    def _reset_gpu(self, order: Order, let_go: LetGo) -> Outcome:
        if why := self._reset.forbidden(order.target):
            raise RefusedError(why)
        self._check_pause()
        self._reset.keep_evidence(order)
        try:
            held = self._reset.free(order.target, let_go)
            if held:
                raise RefusedError(held)
            self._begin(order)
            return self._reset.reset(order.target)
        finally:
            self._reset.restore()
            let_go(False)

    def _hold_node(self, order: Order, _let_go: LetGo) -> Outcome:
        if held := self._hold.read():
            if held.incident != order.incident:
                raise RefusedError(f"held already for {held.incident}")
            return "done", f"held for {order.incident}"
        self._begin(order)
        self._hold.put(order)
        return "done", f"held for {order.incident}"

    def _unhold_node(self, order: Order, _let_go: LetGo) -> Outcome:
        held = self._hold.read()
        if held is None:
            return "done", "not held"
        if held.incident != order.incident:
            raise RefusedError(f"held for {held.incident}, not for {order.incident}")
        self._begin(order)
        self._hold.clear()
        return "done", "not held"

    _VERBS: Final[Mapping[str, Callable[[Effects, Order, LetGo], Outcome]]] = {
        "stop_unit": _stop_unit, "reboot": _reboot, "reset_gpu": _reset_gpu,
        "hold": _hold_node, "unhold": _unhold_node,
    }  # fmt: skip


_INTERRUPTS: Final = frozenset({"stop_unit", "reset_gpu", "reboot"})
