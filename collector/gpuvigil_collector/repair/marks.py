"""What people said and what nodes did: pause, breaker, maintenance, returns. One record of the store.

A record that cannot be read is no record: the kernel then sees None, and denies.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from gpuvigil_collector.repair.doubt import Doubt

DAY_NS: Final = 86400 * 1_000_000_000
_RELAPSE_NS: Final = DAY_NS
_OFFENDER_NS: Final = 7 * DAY_NS
_OFFENDER_TIMES: Final = 3
_KEPT_MAX: Final = 10_000


class Until(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Something that somebody said, and until when it holds."""

    by: str
    why: str
    since_ns: int
    until_ns: int


class Treated(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A node was taken out of service by us at that time."""

    node: str
    at_ns: int


class Marks(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Mutable, of the brain's thread alone.

    breaker_ns: when the storm breaker tripped, 0 = closed; breaker_closed_ns: when a person closed it.
    treated: our holds, newest last. cleared: nodes
    whose past a person has cleared, and when. fingerprints of incidents key acknowledged, silenced and
    false_positives.
    """

    version: Literal[1] = 1
    paused: Until | None = None
    breaker_ns: int = 0
    breaker_closed_ns: int = 0
    maintenance: dict[str, Until] = msgspec.field(default_factory=dict)
    acknowledged: dict[str, Until] = msgspec.field(default_factory=dict)
    silenced: dict[str, Until] = msgspec.field(default_factory=dict)
    false_positives: dict[str, Doubt] = msgspec.field(default_factory=dict)
    false_positives_ever: int = 0
    treated: list[Treated] = msgspec.field(default_factory=list)
    returned: dict[str, int] = msgspec.field(default_factory=dict)
    cleared: dict[str, int] = msgspec.field(default_factory=dict)

    def expire(self, now_ns: int) -> None:
        """Drop what no longer holds."""
        tables: tuple[dict[str, Any], ...] = (
            self.maintenance, self.acknowledged, self.silenced, self.false_positives,
        )  # fmt: skip
        for table in tables:
            for key in [key for key, until in table.items() if until.until_ns <= now_ns]:
                del table[key]
        self.treated = [one for one in self.treated if now_ns - one.at_ns < 28 * DAY_NS][-_KEPT_MAX:]

    def treat(self, node: str, now_ns: int) -> None:
        """Note that we took a node out of service."""
        self.treated.append(Treated(node=node, at_ns=now_ns))

    def times(self, node: str, now_ns: int, within_ns: int) -> int:
        """How often a node was taken out within that time, since a person cleared it."""
        since_ns = max(now_ns - within_ns, self.cleared.get(node, 0))
        return sum(one.node == node and one.at_ns > since_ns for one in self.treated)

    def relapses(self, node: str, now_ns: int) -> int:
        """How many times in a row a node failed again within 24 h of the time before."""
        times = [
            one.at_ns for one in self.treated if one.node == node and one.at_ns > self.cleared.get(node, 0)
        ]
        count = 0
        for later, earlier in zip(reversed([*times, now_ns]), reversed(times), strict=False):
            if later - earlier >= _RELAPSE_NS:
                break
            count += 1
        return max(0, count - 1)

    def is_offender(self, node: str, now_ns: int) -> bool:
        """Whether a node was taken out three times in seven days: only a person returns it then."""
        return self.times(node, now_ns, _OFFENDER_NS) >= _OFFENDER_TIMES
