"""One action's way: look, write down that it is issued, have the effect, look until it tells.

Each step is on disk before the next begins, so that a crash anywhere leaves a state that says what may have
happened: intended is certainly not begun; issued and ambiguous may have happened, and only a look ends them.
An effect is never asked for twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, runtime_checkable

from gpuvigil_collector.action import (
    HARMLESS,
    Action,
    ActionState,
    Actuator,
    AmbiguousError,
    Fence,
    Look,
    RefusedError,
)
from gpuvigil_collector.lease import Lease
from gpuvigil_collector.tended import Tended
from gpuvigil_protos import log

SETTLE: Final = 2.0
"""An absent effect may still arrive: it is believed after so many of its deadlines, or as `Bounded` says."""
FRESH_S: Final = 60.0
"""A verdict is acted on within so long: the fleet is another one later."""
_TEXT_MAX: Final = 500


@runtime_checkable
class Bounded(Protocol):
    """An actuator whose effects arrive soon or never.

    arrives_s: what it was asked for, and nobody answered, has not arrived and will not, once its looks have
    said absent for so long without a break. A scheduler that stands answers no look.
    """

    @property
    def arrives_s(self) -> float:
        """Seconds."""
        ...


class Store(Protocol):
    """Where transitions go."""

    fault: str

    def write(self, action: Action) -> bool:
        """Tell whether the action is on disk."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Carries actions on, one step a call. now_ns: UTC; steady_s: a clock that never jumps.

    paused: who paused and why, "" when nobody, None when it cannot be told.
    """

    store: Store
    lease: Lease
    paused: Callable[[], str | None]
    now_ns: Callable[[], int] = time.time_ns
    steady_s: Callable[[], float] = time.monotonic
    faults: list[str] = field(default_factory=list)

    def begin(self, action: Action, actuator: Actuator | None) -> Action:
        """Take an intended action up to its effect; return what became of it."""
        if actuator is None:
            return self.become(action, "failed", "not begun: no actuator is configured for it")
        _, why = self._may(action)
        if why:
            return self.become(action, "failed", f"not begun: {why}")
        seen = self.look(action, actuator)
        if seen.state == "done":
            return self.become(action, "done", f"already so: {seen.detail}")
        if seen.state != "absent":
            return self.become(action, "failed", f"not begun: {seen.state}: {seen.detail}")
        issued = replace(action, before=seen.token, issued_ns=self.now_ns())
        issued = self.become(issued, "issued", "")
        if issued.state != "issued":
            return issued
        return self._apply(issued, actuator)

    def _apply(self, issued: Action, actuator: Actuator) -> Action:
        """Have the effect, once: clocks, lease and pause are read again right before it."""
        fence, why = self._may(issued)
        if fence is None or why:
            return self.become(issued, "failed", f"not begun: {why}")
        try:
            said = actuator.apply(issued, fence)
        except RefusedError as error:
            return self.become(issued, "failed", str(error))
        except AmbiguousError as error:
            return self.become(issued, "ambiguous", str(error))
        except Exception as error:  # noqa: BLE001 - a bug of one actuator must not stop detection; looks decide
            self._bug(actuator, error)
            return self.become(issued, "ambiguous", f"{actuator.name} failed: {type(error).__name__}")
        return self.become(replace(issued, answered=True), "issued", said or "taken")

    def watch(self, action: Action, actuator: Actuator | None, *, late: bool, settled: bool) -> Action:
        """Look at an issued or ambiguous action. late: past its deadline; settled: absent may be believed."""
        return self.conclude(action, self.seen(action, actuator), late=late, settled=settled)

    def seen(self, action: Action, actuator: Actuator | None) -> Look:
        """Look; write nothing."""
        if actuator is None:
            return Look(state="unknown", detail="its actuator is not configured any more")
        return self.look(action, actuator)

    def conclude(self, action: Action, seen: Look, *, late: bool, settled: bool) -> Action:
        """Write down what a look told, where it told something."""
        if seen.state == "done":
            return self.become(action, "done", _both(action.outcome, seen.detail))
        if seen.state == "failed":  # it was taken, whether or not its answer came
            taken = replace(action, answered=True)
            return self.become(taken, "failed", _both("it did not come about: failed", seen.detail))
        if seen.state in ("absent", "foreign") and settled:
            return self.become(action, "failed", _both(f"it did not come about: {seen.state}", seen.detail))
        if action.state == "issued" and late:
            return self.become(action, "ambiguous", _both("it is not seen in time", seen.detail))
        return action

    def resume(self, action: Action, actuator: Actuator | None) -> Action:
        """Take up what a crash left. What was only intended was never begun: nothing was asked for."""
        if action.state == "intended":
            return self.become(action, "failed", "never begun: the collector stopped before it")
        if action.state == "issued":
            action = self.become(
                action, "ambiguous", _both(action.outcome, "the collector stopped meanwhile")
            )
        return self.watch(action, actuator, late=False, settled=False)

    def become(self, action: Action, state: ActionState, outcome: str) -> Action:
        """Write the new state down; return it. Where `issued` cannot be written, nothing is asked for.

        An end that cannot be written stays in the returned action: the caller writes it again.
        """
        text = "".join(c if c.isprintable() else " " for c in outcome[:_TEXT_MAX])
        changed = replace(action, state=state, outcome=text, changed_ns=self.now_ns())
        if self.store.write(changed) or state != "issued" or action.state == "issued":
            return changed
        return self.become(action, "failed", f"not begun: {self.store.fault}")

    def look(self, action: Action, actuator: Actuator) -> Look:
        """Look; a bug in it is an unknown."""
        try:
            return actuator.look(action)
        except Exception as error:  # noqa: BLE001 - as above
            self._bug(actuator, error)
            return Look(state="unknown", detail=f"{actuator.name} failed: {type(error).__name__}")

    def tend(self, actuator: Tended) -> None:
        """Let an actuator keep up what it keeps, while the lease is ours."""
        if (fence := self.lease.fence()) is None:
            return
        try:
            actuator.tend(fence)
        except Exception as error:  # noqa: BLE001 - as above
            self._bug(actuator, error)

    def _may(self, action: Action) -> tuple[Fence | None, str]:
        """Return the fence, and why the effect may not begin now ("" when it may)."""
        fence = self.lease.fence()
        if fence is None:
            return None, f"no lease ({self.lease.state()})"
        if fence.generation != action.generation:
            return None, f"decided under lease {action.generation}, this one is {fence.generation}"
        age_s = (self.now_ns() - action.decided_ns) / 1e9
        if not -1.0 <= age_s <= FRESH_S:
            return None, f"decided {age_s:.0f} s ago, expected at most {FRESH_S:.0f}"
        if action.proposal.kind in HARMLESS:
            return fence, ""
        paused = self.paused()
        if paused is None:
            return None, "whether it is paused is not known"
        return (None, f"paused: {paused}") if paused else (fence, "")

    def _bug(self, actuator: Actuator | Tended, error: Exception) -> None:
        log.get("execute").error("actuator_failed", actuator=actuator.name, error=repr(error))
        self.faults[:] = [*self.faults, f"{actuator.name} failed: {type(error).__name__}"][-10:]


def _both(first: str, second: str) -> str:
    return f"{first}; {second}" if first and second else first or second
