"""The monitor of a training loop: steps and phases into the ring. It never raises into the loop, never waits.

    from gpuvigil import monitor

    for batch in loader:
        with monitor.step() as step:
            loss = train(batch)
            step.log(loss=loss, tokens=batch.numel())

What is used wrongly (a step in a step, text for a loss) is counted and shown to the operator.
"""

from __future__ import annotations

import math
import os
from threading import get_ident
from time import monotonic_ns
from typing import Any, Dict, List, Optional, Tuple

from gpuvigil import layout
from gpuvigil.fields import EMPTY, GRADIENT, LOSS, PHASE_CODES, SECONDS
from gpuvigil.handles import Phase, Step
from gpuvigil.identity import identity
from gpuvigil.link import Link
from gpuvigil.ring import Control, Ring
from gpuvigil.values import BadValueError, Held, Values, number, read

_NAN = math.nan
_FAULT = {name: place for place, name in enumerate(layout.FAULTS)}
_CHECKPOINT, _EVAL = PHASE_CODES["checkpoint"], PHASE_CODES["eval"]
_NOT_FINITE = {LOSS: layout.FLAG_LOSS, GRADIENT: layout.FLAG_GRADIENT}


class Monitor:
    """One a process; `gpuvigil.monitor` is it. It opens nothing before the first step or phase."""

    __slots__ = (
        "_began", "_broken", "_control", "_empty_step", "_flags", "_held", "_last_end", "_link", "_micro",
        "_numbers", "_owner", "_ring", "_since", "_stack", "_step_number", "_values", "by_hand",
    )  # fmt: skip

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._ring: Optional[Ring] = None
        self._control: Optional[Control] = None
        self._link: Optional[Link] = None
        self._broken = False
        self.by_hand = False  # whether the loop itself says where its steps are
        self._owner = 0
        self._step_number = -1
        self._began = self._last_end = self._since = 0
        self._stack: List[int] = []
        self._numbers = EMPTY[:]
        self._flags = self._micro = 0
        self._held: List[Tuple[int, Held]] = []
        self._values = Values()
        self._empty_step = Step(self)

    # --- what a loop uses

    def step(self, number: Optional[int] = None) -> Step:
        """Enter one step: `with monitor.step() as s`, or `@monitor.step()` over a function that does one.

        number: the loop's own count where it resumes from a checkpoint; else it goes on by one.
        """
        self.by_hand = True
        if number is not None:
            if isinstance(number, int) and 0 <= number < 1 << 53:
                self._step_number = number - 1
            else:
                self.fault("bad_value")
        return self._empty_step

    def phase(self, name: str) -> Phase:
        """Enter a part of the step: data, forward, backward, optimizer, checkpoint, eval, init or compile.

        What lies between two steps (a loader's wait) counts to the next one. Phases may nest; each second
        counts to the innermost.
        """
        return Phase(self, name)

    def micro_step(self) -> None:
        """Count a micro-step: gradient accumulation makes several of them one step."""
        self._micro += 1

    def fault(self, kind: str) -> None:
        """Count what went wrong, for the operator to see."""
        if self._ring is not None:
            self._ring.fault(_FAULT[kind])

    def request(self) -> int:
        """Return the number of the newest request to save that this process was given, 0 for none."""
        return self._control.request if self._control is not None else 0

    def request_id(self) -> str:
        """Return the newest request's own name, "" for none."""
        return self._control.request_id if self._control is not None else ""

    def tell(self, word: Dict[str, Any]) -> None:
        """Have the node's agent told something of this process."""
        if self._link is not None:
            self._link.tell(word)

    def offer(self, name: str, value: str) -> None:
        """Say what this process can be asked for; it is part of who it is."""
        if self._ready() and self._link is not None:
            self._link.offer(name, value)

    # --- inside; callers guard

    def _ready(self) -> bool:
        if self._owner == get_ident():
            return True
        if self._broken:
            return False
        if self._ring is not None:
            self.fault("other_thread")
            return False
        return self._open()

    def _open(self) -> bool:
        try:
            self._ring, self._control = Ring(), Control()
            self._ring.identify(identity())
            self._ring.beat()
            self._link = Link(self._ring, self._control, self._settle, lambda: self._last_end)
            self._link.start()
            self._owner = get_ident()
        except Exception:  # noqa: BLE001 - a full /proc, no memory: the loop must run without us
            self._broken, self._ring = True, None
            return False
        return True

    def _account(self, now: int) -> None:
        """Give the time since the last change to the innermost phase."""
        if self._stack:
            self._numbers[self._stack[-1]] += (now - self._since) * 1e-9
        self._since = now

    def _tell(self) -> None:
        self._ring.live(self._stack[-1] if self._stack else 0, self._since)  # type: ignore[union-attr]

    def _enter_phase(self, code: int) -> None:
        self._account(monotonic_ns())
        self._stack.append(code)
        self._tell()

    def _leave_phase(self) -> None:
        self._account(monotonic_ns())
        if self._stack:
            self._stack.pop()
        self._tell()

    def _end_step(self, failed: bool) -> None:
        """Write the step down. Runs between the caller's real steps: every line here is paid each time."""
        now = monotonic_ns()
        if self._stack:
            self._account(now)
        numbers, flags = self._numbers, self._flags
        last = self._last_end
        if not last:
            flags |= layout.FLAG_FIRST
            last = self._began
        numbers[SECONDS] = (now - last) * 1e-9
        if numbers[_CHECKPOINT]:
            flags |= layout.FLAG_CHECKPOINT
        if numbers[_EVAL]:
            flags |= layout.FLAG_EVAL
        if self._held:
            flags |= layout.FLAG_PENDING
        self._began, self._last_end = 0, now
        if not failed:
            index = self._ring.record(self._step_number, now, flags, self._micro or 1, numbers)  # type: ignore[union-attr]
            if self._held:
                self._hand_over(index)
        self._numbers = EMPTY[:]
        self._flags = self._micro = 0

    def _hand_over(self, index: int) -> None:
        """Leave this step's tensors to the hook's thread."""
        for field, held in self._held:
            if not self._values.add(index, field, held):
                self.fault("value_dropped")
        self._held.clear()

    def _settle(self) -> None:
        """Set the values that have arrived in their records; called by the hook's thread."""
        ring = self._ring
        while ring is not None and (found := self._values.take()) is not None:
            value, flags = _NAN, 0
            try:
                if found.held.tensor._version == found.held.version:
                    value = read(found.held.tensor)
                    flags = 0 if math.isfinite(value) else _NOT_FINITE.get(found.field, 0)
                else:
                    self.fault("value_dropped")  # a buffer that was used again: a later step's value
            except BadValueError:
                self.fault("bad_value")
            clear = 0 if self._values.waits_for(found.record) else layout.FLAG_PENDING
            ring.amend(found.record, found.field, value if math.isfinite(value) else _NAN, flags, clear)

    def _log(self, field: int, value: Any) -> None:
        try:
            found = number(value)
        except BadValueError:
            self.fault("bad_value")
            return
        if type(found) is Held:
            self._held.append((field, found))
        elif field != LOSS and found < 0:  # type: ignore[operator]
            self.fault("bad_value")
        elif math.isfinite(found):  # type: ignore[arg-type]
            self._numbers[field] = found  # type: ignore[assignment]
        else:
            self._flags |= _NOT_FINITE.get(field, 0)


monitor = Monitor()
if hasattr(
    os, "register_at_fork"
):  # a forked worker must not write its parent's ring; it gets its own on use
    os.register_at_fork(after_in_child=monitor._forget)
