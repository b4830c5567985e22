"""The monitor of a training loop: steps and phases into the ring. It never raises into the loop, never waits.

    from gpuvigil import monitor

    for batch in loader:
        with monitor.step() as step:
            loss = train(batch)
            step.log(loss=loss, tokens=batch.numel())

What is used wrongly (a step in a step, text for a loss) is counted and shown to the operator.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from threading import get_ident
from time import monotonic_ns
from typing import Any, Callable, List, Optional, Tuple, TypeVar

from gpuvigil import layout
from gpuvigil.identity import identity
from gpuvigil.link import Link
from gpuvigil.ring import Control, Ring
from gpuvigil.values import BadValueError, Held, Values, number, read

_F = TypeVar("_F", bound=Callable[..., Any])
_NAN = math.nan
_PHASE_CODES = {name: code for code, name in enumerate(layout.PHASES)}
_FAULT = {name: place for place, name in enumerate(layout.FAULTS)}
# places among a record's numbers
_SECONDS, _TOKENS, _LOSS, _GRADIENT = 0, 9, 10, 11
_CHECKPOINT, _EVAL = _PHASE_CODES["checkpoint"], _PHASE_CODES["eval"]  # a phase's time lies at its code
_EMPTY = [0.0] * _TOKENS + [_NAN] * 4
_NOT_FINITE = {_LOSS: layout.FLAG_LOSS, _GRADIENT: layout.FLAG_GRADIENT}


class Monitor:
    """One a process; `gpuvigil.monitor` is it. It opens nothing before the first step or phase."""

    __slots__ = (
        "_began", "_broken", "_control", "_empty_step", "_flags", "_held", "_last_end", "_link", "_micro",
        "_numbers", "_owner", "_ring", "_since", "_stack", "_step_number", "_values",
    )  # fmt: skip

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._ring: Optional[Ring] = None
        self._control: Optional[Control] = None
        self._link: Optional[Link] = None
        self._broken = False
        self._owner = 0
        self._step_number = -1
        self._began = self._last_end = self._since = 0
        self._stack: List[int] = []
        self._numbers = _EMPTY[:]
        self._flags = self._micro = 0
        self._held: List[Tuple[int, Held]] = []
        self._values = Values()
        self._empty_step = _Step(self)

    # --- what a loop uses

    def step(self, number: Optional[int] = None) -> _Step:
        """Enter one step: `with monitor.step() as s`, or `@monitor.step()` over a function that does one.

        number: the loop's own count where it resumes from a checkpoint; else it goes on by one.
        """
        if number is not None:
            if isinstance(number, int) and 0 <= number < 1 << 53:
                self._step_number = number - 1
            else:
                self.fault("bad_value")
        return self._empty_step

    def phase(self, name: str) -> _Phase:
        """Enter a part of the step: data, forward, backward, optimizer, checkpoint, eval, init or compile.

        What lies between two steps (a loader's wait) counts to the next one. Phases may nest; each second
        counts to the innermost.
        """
        return _Phase(self, name)

    def micro_step(self) -> None:
        """Count a micro-step: gradient accumulation makes several of them one step."""
        self._micro += 1

    def fault(self, kind: str) -> None:
        """Count what went wrong, for the operator to see."""
        if self._ring is not None:
            self._ring.fault(_FAULT[kind])

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
            self._link = Link(self._ring, self._control, self._settle)
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
        numbers[_SECONDS] = (now - last) * 1e-9
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
        self._numbers = _EMPTY[:]
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
                value = read(found.held)
                flags = 0 if math.isfinite(value) else _NOT_FINITE.get(found.field, 0)
            except BadValueError:
                self.fault("value_dropped" if found.held.event is None else "bad_value")
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
        elif field != _LOSS and found < 0:  # type: ignore[operator]
            self.fault("bad_value")
        elif math.isfinite(found):  # type: ignore[arg-type]
            self._numbers[field] = found  # type: ignore[assignment]
        else:
            self._flags |= _NOT_FINITE.get(field, 0)


class _Step:
    """What `monitor.step()` gives: a context manager, and a decorator for a function that does one step."""

    __slots__ = ("_monitor",)

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __enter__(self) -> _Step:
        monitor = self._monitor
        try:
            if monitor._owner != get_ident() and not monitor._ready():
                return self
            if monitor._began:
                monitor.fault("nested_step")
                monitor._end_step(False)
            now = monotonic_ns()
            if monitor._stack:
                monitor._account(now)
            monitor._began = now
            monitor._step_number += 1
        except Exception:  # noqa: BLE001 - the training loop never fails because of us
            swallowed(monitor)
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        monitor = self._monitor
        try:
            if monitor._began and monitor._owner == get_ident():
                monitor._end_step(kind is not None)
        except Exception:  # noqa: BLE001 - as above
            swallowed(monitor)

    def __call__(self, function: _F) -> _F:
        return _around(self._monitor.step, function)

    def log(self, loss: Any = None, tokens: Any = None, grad_norm: Any = None, **unknown: Any) -> None:
        """Log numbers of this step: floats, or tensors of one element. Other names are counted, not kept."""
        monitor = self._monitor
        try:
            if monitor._owner != get_ident() and not monitor._ready():
                return
            if not monitor._began:
                monitor.fault("log_outside_step")
                return
            if loss is not None:
                monitor._log(_LOSS, loss)
            if tokens is not None:
                monitor._log(_TOKENS, tokens)
            if grad_norm is not None:
                monitor._log(_GRADIENT, grad_norm)
            for _ in unknown:
                monitor.fault("bad_value")
        except Exception:  # noqa: BLE001 - as above
            swallowed(monitor)

    def micro_step(self) -> None:
        """Count a micro-step of gradient accumulation."""
        self._monitor._micro += 1


class _Phase:
    """What `monitor.phase(name)` gives: a context manager and a decorator."""

    __slots__ = ("_code", "_monitor", "_name")

    def __init__(self, monitor: Monitor, name: str) -> None:
        self._monitor, self._name = monitor, name
        self._code = _PHASE_CODES.get(name, 0) if isinstance(name, str) else 0

    def __enter__(self) -> None:
        monitor = self._monitor
        try:
            if monitor._owner != get_ident() and not monitor._ready():
                return
            if self._code:
                monitor._enter_phase(self._code)
            else:
                monitor.fault("unknown_phase")
        except Exception:  # noqa: BLE001 - as above
            swallowed(monitor)

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        monitor = self._monitor
        try:
            if self._code and monitor._owner == get_ident():
                monitor._leave_phase()
        except Exception:  # noqa: BLE001 - as above
            swallowed(monitor)

    def __call__(self, function: _F) -> _F:
        name = self._name
        return _around(lambda: self._monitor.phase(name), function)


def _around(enter: Callable[[], Any], function: _F) -> _F:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        with enter():
            return function(*arguments, **named)

    return wrapped  # type: ignore[return-value]


def swallowed(monitor: Monitor) -> None:
    """Count what we swallowed: the contract of the hook is that a loop never fails because of us."""
    with contextlib.suppress(Exception):  # not even for that
        monitor.fault("internal")


monitor = Monitor()
if hasattr(
    os, "register_at_fork"
):  # a forked worker must not write its parent's ring; it gets its own on use
    os.register_at_fork(after_in_child=monitor._forget)
