"""What a process says when its loop stands still: where its main thread is, and how far its collectives came.

Looked at by the hook's thread, so the loop pays nothing; it needs the interpreter lock, and a process that
holds it for ever says nothing: its heartbeat says that. Said when no step has ended for 10 s and twice the
longest gap so far, and again every 10 s while that lasts.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from gpuvigil import collectives

LEAST_S = 10.0
AGAIN_S = 10.0
FRAMES_MAX = 8
_FACTOR = 2.0


class Standstill:
    """Call `look` at each beat with the end of the newest step (monotonic ns, 0 = none yet)."""

    def __init__(self, tell: Callable[[Dict[str, Any]], None]) -> None:
        self._tell = tell
        self._last_end = 0
        self._longest_s = 0.0
        self._said_at = 0.0

    def look(self, last_end_ns: int) -> None:
        """Say where the process stands, when it is time to."""
        now_ns = time.monotonic_ns()
        if last_end_ns != self._last_end:
            if self._last_end:
                self._longest_s = max(self._longest_s * 0.99, (last_end_ns - self._last_end) * 1e-9)
            self._last_end = last_end_ns
            return
        age_s = (now_ns - last_end_ns) * 1e-9
        if not last_end_ns or age_s < max(LEAST_S, _FACTOR * self._longest_s):
            return
        if now_ns * 1e-9 - self._said_at >= AGAIN_S:
            self._said_at = now_ns * 1e-9
            self._tell(word(age_s))


def word(age_s: float) -> Dict[str, Any]:
    """Return the message: seconds without a step, the main thread's innermost frames, the groups.

    timeout: whole seconds after which the job itself gives a collective up, 0 where torch does not tell.
    """
    return {
        "event": "standstill", "seconds": round(age_s, 1), "stack": stack(),
        "groups": collectives.progress(), "timeout": collectives.timeout_s(),
    }  # fmt: skip


def stack(frame: Optional[Any] = None) -> List[str]:
    """Return the main thread's innermost frames, `file.py:12 function`, innermost first."""
    if frame is None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
    found: List[str] = []
    while frame is not None and len(found) < FRAMES_MAX:
        code = frame.f_code
        name = code.co_filename.rsplit("/", 1)[-1]
        found.append(("%s:%d %s" % (name, frame.f_lineno, code.co_name))[:80])
        frame = frame.f_back
    return found
