"""Sets of sequence numbers as sorted, disjoint intervals: what the delivery ledger stores.

A healthy sender is one interval, so adding the next number costs the same at a million as at one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class IntervalSet:
    """Whole numbers from 1, closed intervals `[first, last]`, never adjacent to each other."""

    __slots__ = ("_first", "_last")

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in intervals:
            self.add(first, last)

    def add(self, first: int, last: int) -> int:
        """Add a closed interval; return how many of its numbers are new. Needs 1 <= first <= last."""
        low = bisect_left(self._last, first - 1)
        high = bisect_right(self._first, last + 1)
        known = sum(
            min(last, self._last[at]) - max(first, self._first[at]) + 1
            for at in range(low, high)
            if self._first[at] <= last and self._last[at] >= first
        )
        if low < high:
            merged = min(first, self._first[low]), max(last, self._last[high - 1])
        else:
            merged = first, last
        self._first[low:high] = [merged[0]]
        self._last[low:high] = [merged[1]]
        return last - first + 1 - known

    def update(self, other: IntervalSet) -> None:
        """Add every number of `other`."""
        for first, last in other:
            self.add(first, last)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._last, number)
        return at < len(self._last) and self._first[at] <= number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._first, self._last, strict=True))

    def __len__(self) -> int:
        """Return the number of intervals, not of numbers."""
        return len(self._first)

    @property
    def watermark(self) -> int:
        """Return the number up to and including which everything from 1 is in the set; 0 for none."""
        return self._last[0] if self._first and self._first[0] == 1 else 0

    def copy(self) -> IntervalSet:
        """Return an independent set of the same numbers."""
        twin = IntervalSet()
        twin._first, twin._last = self._first.copy(), self._last.copy()
        return twin

    def to_text(self) -> str:
        """Write as `1-500,600-700`, which people and SQLite can read."""
        return ",".join(f"{first}-{last}" for first, last in self)

    @classmethod
    def from_text(cls, text: str) -> IntervalSet:
        """Undo `to_text`. Raises ValueError on other text."""
        pairs = (part.split("-") for part in text.split(",") if part)
        return cls((int(first), int(last)) for first, last in pairs)
