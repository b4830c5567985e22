"""One agent's clock against ours: the offset, its jumps, and the second of the grid a tick belongs to.

Every message carries the agent's sending time, so `received - sent` is the true offset plus the way here;
the smallest of the newest few is the best estimate (the minimum-round-trip filter of NTP, RFC 5905 §10).
"""

from __future__ import annotations

from collections import deque
from typing import Final

SECOND_NS: Final = 1_000_000_000
_SAMPLES: Final = 8
_JUMP_NS: Final = SECOND_NS // 2
_GRID_SLACK_NS: Final = SECOND_NS // 4


class AgentClock:
    """Offset to add to the agent's time to get the collector's. Blind spot: the one-way delay stays in it."""

    def __init__(self) -> None:
        self._delays: deque[int] = deque(maxlen=_SAMPLES)
        self._offset_ns: int | None = None
        self._grid_offset_ns: int | None = None
        self._grid_origin: tuple[int, int] | None = None
        self.jumps = 0

    @property
    def offset_ns(self) -> int:
        """Nanoseconds to add to the agent's time; 0 before the first message."""
        return self._offset_ns or 0

    def observe(self, received_ns: int, sent_ns: int) -> bool:
        """Take one message's times; return True when the agent's clock has jumped by over half a second.

        A jump forward shows at once, as no delay is negative; one back, once the old samples are gone.
        """
        self._delays.append(received_ns - sent_ns)
        offset = min(self._delays)
        jumped = self._offset_ns is not None and abs(offset - self._offset_ns) > _JUMP_NS
        if jumped:
            self.jumps += 1
            self._delays.clear()
            self._delays.append(received_ns - sent_ns)
        self._offset_ns = offset
        return jumped

    def second_of(self, tick_ns: int) -> int:
        """Return the grid's second for a tick in the agent's time.

        A tick's phase is kept from the first one on, so that jitter about a full second puts no two ticks
        into one column; a new offset of over 250 ms begins anew.
        """
        if self._grid_offset_ns is None or abs(self.offset_ns - self._grid_offset_ns) > _GRID_SLACK_NS:
            self._grid_offset_ns = self.offset_ns
            self._grid_origin = None
        at_ns = tick_ns + self._grid_offset_ns
        if self._grid_origin is None:
            self._grid_origin = at_ns, at_ns // SECOND_NS
        origin_ns, origin_second = self._grid_origin
        return origin_second + (at_ns - origin_ns + SECOND_NS // 2) // SECOND_NS
