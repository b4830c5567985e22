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
import threading
import time
from typing import Any, Callable, List, Optional, TypeVar

from gpuvigil import layout
from gpuvigil.identity import identity
from gpuvigil.link import Link
from gpuvigil.ring import Control, Ring
from gpuvigil.values import BadValueError, DeviceValues, number

_F = TypeVar("_F", bound=Callable[..., Any])
_NAN = math.nan
_PHASE_CODES = {name: code for code, name in enumerate(layout.PHASES)}
_FAULT = {name: place for place, name in enumerate(layout.FAULTS)}
# places among a record's numbers
_SECONDS, _FIRST_PHASE, _TOKENS, _LOSS, _GRADIENT, _MEMORY = 0, 1, 9, 10, 11, 12
_FIELDS = {"tokens": _TOKENS, "loss": _LOSS, "grad_norm": _GRADIENT}
_NOT_FINITE = {_LOSS: layout.FLAG_LOSS, _GRADIENT: layout.FLAG_GRADIENT}


class Monitor:
    """One a process; `gpuvigil.monitor` is it. It opens nothing before the first step or phase."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._ring: Optional[Ring] = None
        self._control: Optional[Control] = None
        self._link: Optional[Link] = None
        self._broken = False
        self._owner = 0
        self._step_number = -1
        self._began = self._last_end = 0
        self._stack: List[int] = []
        self._since = 0
        self._numbers = [0.0] * _TOKENS + [_NAN] * 4
        self._flags = self._micro = 0
        self._logged: List[Any] = []
        self._device = DeviceValues()
        self._step = _Step(self)

    # --- what a loop uses

    def step(self, number: Optional[int] = None) -> _Step:
        """Enter one step: `with monitor.step() as s`, or `@monitor.step()` over a function that does one.

        number: the loop's own count where it resumes from a checkpoint; else it goes on by one.
        """
        if number is not None and isinstance(number, int) and 0 <= number < 1 << 53:
            self._step_number = number - 1
        elif number is not None:
            self.fault("bad_value")
        return self._step

    def phase(self, name: str) -> _Phase:
        """Enter a part of the step: data, forward, backward, optimizer, checkpoint, eval, init or compile.

        What lies between two steps (a loader's wait) counts to the next one. Phases may nest; each second
        counts to the innermost.
        """
        return _Phase(self, name)

    def micro_step(self) -> None:
        """Count a micro-step: gradient accumulation makes several of them one step."""
        self._micro += 1

    # --- inside

    def _ready(self) -> bool:
        if self._ring is not None and self._owner == threading.get_ident():
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
            self._owner = threading.get_ident()
            self._since = time.monotonic_ns()
            self._ring.identify(identity())
            self._ring.beat()
            self._link = Link(self._ring, self._control)
            self._link.start()
        except Exception:  # noqa: BLE001 - a full /proc, no memory: the loop must run without us
            self._broken, self._ring = True, None
            return False
        return True

    def fault(self, kind: str) -> None:
        """Count what went wrong, for the operator to see."""
        if self._ring is not None:
            self._ring.fault(_FAULT[kind])

    def _tell(self, now: int) -> None:
        assert self._ring is not None
        code = self._stack[-1] if self._stack else 0
        self._ring.live(self._step_number, self._began, code, self._since, self._last_end)

    def _account(self, now: int) -> None:
        """Give the time since the last change to the innermost phase."""
        if self._stack:
            self._numbers[_FIRST_PHASE + self._stack[-1] - 1] += (now - self._since) * 1e-9
        self._since = now

    def _enter_phase(self, code: int) -> None:
        now = time.monotonic_ns()
        self._account(now)
        self._stack.append(code)
        self._tell(now)

    def _leave_phase(self) -> None:
        now = time.monotonic_ns()
        self._account(now)
        if self._stack:
            self._stack.pop()
        self._tell(now)

    def _enter_step(self) -> None:
        if self._began:
            self.fault("nested_step")
            self._leave_step(False)
        now = time.monotonic_ns()
        self._account(now)
        self._began = now
        self._step_number += 1
        self._tell(now)

    def _leave_step(self, failed: bool) -> None:
        now = time.monotonic_ns()
        self._account(now)
        assert self._ring is not None
        numbers, flags = self._numbers, self._flags
        start = self._last_end or self._began
        numbers[_SECONDS] = (now - start) * 1e-9
        if not self._last_end:
            flags |= layout.FLAG_FIRST
        if numbers[_FIRST_PHASE + _PHASE_CODES["checkpoint"] - 1]:
            flags |= layout.FLAG_CHECKPOINT
        if numbers[_FIRST_PHASE + _PHASE_CODES["eval"] - 1]:
            flags |= layout.FLAG_EVAL
        self._began, self._last_end = 0, now
        if not failed:
            index = self._ring.record(
                self._step_number, time.time_ns(), now, flags, self._micro or 1, numbers
            )
            self._hand_over(index)
        self._numbers = [0.0] * _TOKENS + [_NAN] * 4
        self._flags = self._micro = 0
        self._logged.clear()
        self._tell(now)

    def _hand_over(self, index: int) -> None:
        """Start copies of this step's device values, take in those of earlier steps that have arrived."""
        for field, tensor in self._logged:
            if not self._device.add(index, field, tensor):
                self.fault("value_dropped")
        while len(self._device) and (arrived := self._device.ready()) is not None:
            at, field, value = arrived
            assert self._ring is not None
            self._ring.amend(at, field, value if math.isfinite(value) else _NAN, _flag(field, value))

    def _log(self, **values: Any) -> None:
        if not self._began:
            self.fault("log_outside_step")
            return
        for name, value in values.items():
            field = _FIELDS.get(name)
            if field is None or value is None:
                if field is None:
                    self.fault("bad_value")
                continue
            try:
                found = number(value)
            except BadValueError:
                self.fault("bad_value")
                continue
            if isinstance(found, float):
                self._take(field, found)
            else:
                self._logged.append((field, found))

    def _take(self, field: int, value: float) -> None:
        if field != _LOSS and value < 0:
            self.fault("bad_value")
        elif math.isfinite(value):
            self._numbers[field] = value
        else:
            self._flags |= _flag(field, value)


def _flag(field: int, value: float) -> int:
    return 0 if math.isfinite(value) else _NOT_FINITE.get(field, 0)


class _Step:
    """What `monitor.step()` gives: a context manager, and a decorator for a function that does one step."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __enter__(self) -> _Step:
        guarded(self._monitor, self._monitor._enter_step)
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if self._monitor._began:
            guarded(self._monitor, self._monitor._leave_step, kind is not None)

    def __call__(self, function: _F) -> _F:
        return _around(self._monitor.step, function)

    def log(self, **values: Any) -> None:
        """Log numbers of this step: loss, tokens, grad_norm; floats, or tensors of one element."""
        guarded(self._monitor, self._monitor._log, **values)

    def micro_step(self) -> None:
        """Count a micro-step of gradient accumulation."""
        self._monitor.micro_step()


class _Phase:
    """What `monitor.phase(name)` gives: a context manager and a decorator."""

    def __init__(self, monitor: Monitor, name: str) -> None:
        self._monitor, self._name = monitor, name
        self._code = _PHASE_CODES.get(name, 0) if isinstance(name, str) else 0

    def __enter__(self) -> None:
        if self._code:
            guarded(self._monitor, self._monitor._enter_phase, self._code)
        else:
            guarded(self._monitor, self._monitor.fault, "unknown_phase")

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if self._code:
            guarded(self._monitor, self._monitor._leave_phase)

    def __call__(self, function: _F) -> _F:
        name = self._name
        return _around(lambda: self._monitor.phase(name), function)


def _around(enter: Callable[[], Any], function: _F) -> _F:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        with enter():
            return function(*arguments, **named)

    return wrapped  # type: ignore[return-value]


def guarded(monitor: Monitor, act: Callable[..., None], *arguments: Any, **named: Any) -> None:
    """Do it where the monitor is open; swallow and count what goes wrong. The contract of the hook."""
    try:
        if monitor._ready():
            act(*arguments, **named)
    except Exception:  # noqa: BLE001 - the training loop never fails because of us
        with contextlib.suppress(Exception):  # not even for that
            monitor.fault("internal")


monitor = Monitor()
if hasattr(
    os, "register_at_fork"
):  # a forked worker must not write its parent's ring; it gets its own on use
    os.register_at_fork(after_in_child=monitor._forget)
