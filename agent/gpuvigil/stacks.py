"""Stacks under a held interpreter lock: a signal that nobody uses writes them into a file the agent holds.

`faulthandler` writes from the signal's handler, so no thread of this process has to run. The signal is a
real-time one whose disposition is the default and that no thread start has blocked; `GPUVIGIL_STACK_SIGNAL`
names another, or is `off`. One that somebody has a handler for is never taken, and one that somebody takes
later is given up at the next beat.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
from typing import Dict, Iterator, Optional

from gpuvigil import layout
from gpuvigil.ring import anonymous_file

_FIRST, _COUNT = 12, 8  # SIGRTMIN+12 and the seven after it: far from what runtimes and debuggers use
_SIGACTION_MAX = 256  # bytes; the kernel's struct is 152 on x86-64, its handler comes first
_DEFAULT, _IGNORED = 0, 1
_libc = ctypes.CDLL(None)
_owners: Dict[int, int] = {}  # signal -> process that registered it; a forked child may take it over


class Stacks:
    """One a process: opened by the loop's thread, looked at by the hook's."""

    def __init__(self) -> None:
        """Never raises: a process without stacks is one that shows fewer."""
        self.fd = -1
        self._signal = 0
        self._handler: Optional[int] = None
        with contextlib.suppress(Exception):
            self._open()

    def _open(self) -> None:
        for number in _free():
            if self.fd < 0:
                self.fd = anonymous_file("gpuvigil-stacks", layout.STACKS_SIZE)
            faulthandler.register(number, file=self.fd, all_threads=True, chain=False)
            handler = handler_of(number)
            if handler not in (None, _DEFAULT, _IGNORED):
                _owners[number] = os.getpid()
                self._signal, self._handler = number, handler
                return
            # it knew the signal from before and did not notice that somebody has set it back since
            faulthandler.unregister(number)

    def current(self) -> int:
        """Return the signal while it is ours, else 0."""
        if self._signal and handler_of(self._signal) != self._handler:
            self._signal = 0
        return self._signal


def handler_of(number: int) -> Optional[int]:
    """Return the address of a signal's handler, 0 for the default, 1 for ignored; None where unknown.

    Source: sigaction(2). Python's own view misses handlers that C code has set.
    """
    old = ctypes.create_string_buffer(_SIGACTION_MAX)
    if _libc.sigaction(number, None, old) != 0:
        return None
    return ctypes.c_void_p.from_buffer(old).value or _DEFAULT


def _free() -> Iterator[int]:
    """Yield the signals that may be taken, in the order of preference."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for number in _wanted(os.environ.get("GPUVIGIL_STACK_SIGNAL", "").strip()):
        handler = handler_of(number)
        inherited = number in _owners and _owners[number] != os.getpid()
        if (handler == _DEFAULT or (inherited and handler is not None)) and number not in blocked:
            yield number


def _wanted(text: str) -> Iterator[int]:
    if not sys.platform.startswith("linux"):
        return
    if not text:
        yield from range(signal.SIGRTMIN + _FIRST, min(signal.SIGRTMIN + _FIRST + _COUNT, signal.SIGRTMAX))
    elif text.isascii() and text.isdecimal() and 0 < int(text[:4]) <= signal.SIGRTMAX:
        yield int(text)
    elif text.startswith("SIG") and isinstance(getattr(signal, text, None), signal.Signals):
        yield int(getattr(signal, text))
