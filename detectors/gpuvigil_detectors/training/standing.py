"""What ranks say while their loop stands still, read as collective progress, and their stacks side by side.

Words come from jobs and are hostile until read: what is no number is not there, and a rank list is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gpuvigil_detectors.base import FactEvent
from gpuvigil_detectors.training.blame import judge
from gpuvigil_detectors.training.progress import Blame, GroupProgress, RankProgress

FRESH_NS: Final = 25_000_000_000  # ranks say it every 10 s
RANKS_MAX: Final = 1 << 16
_RANGE: Final = re.compile(r"(\d{1,6})(?:-(\d{1,6})(?:/(\d{1,6}))?)?\Z")
_PREFIX: Final = "group_"
_WAITING: Final = re.compile(
    r"all_?reduce|all_?gather|reduce_scatter|all_to_all|broadcast|barrier|wait|synchronize"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One rank's newest word. stack: its innermost frames, innermost first."""

    at_ns: int
    stack: tuple[str, ...]
    groups: tuple[GroupProgress, ...]
    members: dict[str, tuple[int, ...]]


_NOTHING: Final = Standing(at_ns=0, stack=(), groups=(), members={})


def read(event: FactEvent) -> Standing:
    """Read an event of kind collectives."""
    groups, members = [], {}
    for key, value in event.fields.items():
        words = value.split("|")
        if not key.startswith(_PREFIX) or len(words) != 5:
            continue
        name = words[0]
        enqueued, started, completed = (int(word) if word.isdecimal() else None for word in words[1:4])
        groups.append(GroupProgress(group=name, enqueued=enqueued, started=started, completed=completed))
        members[name] = ranks_of(words[4])
    stack = tuple(part for part in event.fields.get("stack", "").split(" < ") if part)
    return Standing(at_ns=event.time_ns, stack=stack, groups=tuple(groups), members=members)


def ranks_of(text: str) -> tuple[int, ...]:
    """Ranks of `0-7`, `0-56/8`, `1,4,5`; what is none is left out."""
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.match(part)
        if match is None or len(found) >= RANKS_MAX:
            continue
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if step > 0 and first <= last < RANKS_MAX:
            found += range(first, last + 1, step)
    return tuple(found)


def blame(living: Iterable[tuple[int, Standing | None, bool]], now_ns: int) -> Blame | None:
    """Judge a job's ranks: (number, word, whether its threads stand still). None: too few have spoken."""
    rows: list[RankProgress] = []
    members: dict[str, tuple[int, ...]] = {}
    spoke = 0
    for number, word, stopped in living:
        fresh = word if word is not None and now_ns - word.at_ns <= FRESH_NS else _NOTHING
        spoke += fresh is not _NOTHING
        groups = {group.group: group for group in fresh.groups}
        rows.append(RankProgress(rank=number, groups=groups, state="stopped" if stopped else "alive"))
        for name, ranks in fresh.members.items():
            if len(ranks) > len(members.get(name, ())):
                members[name] = ranks
    stopped_ranks = sum(row.state == "stopped" for row in rows)
    if not members or spoke + stopped_ranks < len(rows) or spoke < 1:
        return None
    return judge(rows, members)


def stacks(living: Iterable[tuple[int, Standing | None]]) -> str:
    """Say where the ranks are, grouped by stack, the smallest group last and whole: it is the odd one."""
    where: dict[tuple[str, ...], list[int]] = {}
    for number, word in living:
        if word is not None and word.stack:
            where.setdefault(word.stack, []).append(number)
    if not where:
        return ""
    ordered = sorted(where.items(), key=lambda item: (-len(item[1]), item[1]))
    parts = [f"rank {_few(ranks)} in {_place(stack)}" for stack, ranks in ordered[:4]]
    return "; ".join(parts)


def _place(stack: tuple[str, ...]) -> str:
    """The innermost frame of the user's, with what it waits in."""
    waits = next((frame for frame in stack if _WAITING.search(frame.partition(" ")[2])), "")
    own = next((frame for frame in stack if not _WAITING.search(frame.partition(" ")[2])), stack[0])
    return f"{waits.partition(' ')[2]}, from {own}" if waits else stack[0]


def _few(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:6]))
    return shown if len(ranks) <= 6 else f"{shown} and {len(ranks) - 6} more"
