"""What `monitor.step()` and `monitor.phase()` give: context managers that are decorators too.

They are the hook's outermost layer: whatever goes wrong inside is swallowed and counted here, and what can be
said in one line is said here, because these calls stand between the user's real steps.
"""

from __future__ import annotations

import contextlib
import functools
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from gpuvigil.fields import GRADIENT, LOSS, PHASE_CODES, TOKENS

if TYPE_CHECKING:
    from gpuvigil.loop import Monitor

_F = TypeVar("_F", bound=Callable[..., Any])


class Step:
    """What `monitor.step()` gives: a context manager, and a decorator for a function that does one step."""

    __slots__ = ("_monitor",)

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __enter__(self) -> Step:
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
        """Make each call of a function one of these."""
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
                monitor._log(LOSS, loss)
            if tokens is not None:
                monitor._log(TOKENS, tokens)
            if grad_norm is not None:
                monitor._log(GRADIENT, grad_norm)
            for _ in unknown:
                monitor.fault("bad_value")
        except Exception:  # noqa: BLE001 - as above
            swallowed(monitor)

    def micro_step(self) -> None:
        """Count a micro-step of gradient accumulation."""
        self._monitor._micro += 1


class Phase:
    """What `monitor.phase(name)` gives: a context manager and a decorator."""

    __slots__ = ("_code", "_monitor", "_name")

    def __init__(self, monitor: Monitor, name: str) -> None:
        self._monitor, self._name = monitor, name
        self._code = PHASE_CODES.get(name, 0) if isinstance(name, str) else 0

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
        """Make each call of a function one of these."""
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
