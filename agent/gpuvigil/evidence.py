"""What a process gathers when its job is suspected to hang: one full dump of torch's own records, condensed.

Asked for by a number in the control page, seen by the hook's thread, taken by a thread of its own: a dump
that never returns holds up neither heartbeat nor loop. One is under way at most.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Callable, Dict, List, Optional

from gpuvigil import collectives, standstill

MESSAGE_MAX = 4000  # of one word, less than the link's


class Evidence:
    """Call `look` at each beat with the newest request's number."""

    def __init__(self, tell: Callable[[Dict[str, Any]], None]) -> None:
        self._tell = tell
        self._done = 0
        self._thread: Optional[threading.Thread] = None

    def look(self, number: int) -> None:
        """Begin a dump when a new one is asked for; the one before must have ended."""
        if number <= self._done or (self._thread is not None and self._thread.is_alive()):
            return
        self._done = number
        self._thread = threading.Thread(
            target=self._gather, args=(number,), name="gpuvigil-evidence", daemon=True
        )
        self._thread.start()

    def _gather(self, number: int) -> None:
        with contextlib.suppress(Exception):  # torch being torn down; nothing of ours may reach the job
            self._tell(word(number))


def word(number: int) -> Dict[str, Any]:
    """Return the message: the main thread's frames, and each group's last ops; cut to fit a message."""
    groups = collectives.recent()
    found = {"event": "flight", "number": number, "stack": standstill.stack(), "groups": groups}
    while groups and _size(found) > MESSAGE_MAX:
        longest = max(groups, key=lambda group: len(group["ops"]))
        if longest["ops"]:
            longest["ops"].pop()
        else:
            groups.pop()
    return found


def _size(found: Dict[str, Any]) -> int:
    parts: List[Any] = [found["stack"], *found["groups"]]
    return 100 + sum(len(repr(part)) for part in parts)  # ASCII, so as long as its JSON but for spaces
