"""What ranks say while their loop stands still, read as collective progress, and their stacks side by side.

Words come from jobs and are hostile until read: what is no number is not there, and a rank list is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gpuvigil_detectors.base import FactEvent
from gpuvigil_detectors.training.blame import judge
from gpuvigil_detectors.training.progress import Blame, GroupProgress, RankProgress

FRESH_NS: Final = 25_000_000_000  # ranks say it every 10 s
RANKS_MAX: Final = 1 << 16
_PLACES_MAX: Final = 4
_RANGE: Final = re.compile(r"(\d{1,6})(?:-(\d{1,6})(?:/(\d{1,6}))?)?\Z")
PREFIX: Final = "group_"
_WAITING: Final = re.compile(
    r"all_?reduce|all_?gather|reduce_scatter|all_to_all|broadcast|barrier|wait|synchronize"
)
_TORCH: Final = re.compile(
    r"(c10d_logger|distributed_c10d|_functional_collectives|_?contextlib|eval_frame)\.py:"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One rank's newest word. stack: its innermost frames, innermost first.

    timeout_s: how long it waits for a collective of its default group before it gives up.
    """

    at_ns: int
    stack: tuple[str, ...]
    groups: tuple[GroupProgress, ...]
    members: dict[str, tuple[int, ...]]
    timeout_s: float | None = None


_NOTHING: Final = Standing(at_ns=0, stack=(), groups=(), members={})


def read(event: FactEvent) -> Standing:
    """Read an event of kind collectives."""
    groups, members = [], {}
    for key, value in event.fields.items():
        words = value.split("|")
        if not key.startswith(PREFIX) or len(words) != 5:
            continue
        name = words[0]
        enqueued, started, completed = (number(word) for word in words[1:4])
        groups.append(GroupProgress(group=name, enqueued=enqueued, started=started, completed=completed))
        members[name] = ranks_of(words[4])
    stack = tuple(part for part in event.fields.get("stack", "").split(" < ") if part)
    return Standing(
        at_ns=event.time_ns, stack=stack, groups=tuple(groups), members=members,
        timeout_s=number(event.fields.get("timeout", "")) or None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What its agent found where a hook does not run. state: the kernel's letter. note: why no stack."""

    at_ns: int
    state: str
    note: str
    stack: tuple[str, ...]

    @property
    def words(self) -> str:
        """Say what keeps its threads from running, as far as it is known."""
        if self.state in ("T", "t"):
            return "it is stopped by a signal, or by a debugger"
        if self.state == "D":
            return "its main thread is in the kernel and cannot be interrupted (storage or driver)"
        return (
            f"its interpreter lock is held, main thread in {_place(self.stack)}" if self.stack else self.note
        )


def read_held(event: FactEvent) -> Held | None:
    """Read an event of kind collectives whose source is signal; None for another."""
    if event.fields.get("source") != "signal":
        return None
    return Held(
        at_ns=event.time_ns, state=event.fields.get("state", "")[:1], note=event.fields.get("note", "")[:120],
        stack=read(event).stack,
    )  # fmt: skip


def number(word: str) -> int | None:
    """Return a count; None for what is none."""
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 19 else None


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


def blame(
    living: Iterable[tuple[int, Standing | None, bool]], now_ns: int, struck: frozenset[int] = frozenset()
) -> Blame | None:
    """Judge a job's ranks: (number, word, whether its threads stand still). None: too few have spoken.

    struck: ranks whose device has reported a fatal fault.
    """
    rows: list[RankProgress] = []
    members: dict[str, tuple[int, ...]] = {}
    spoke: set[int] = set()
    for number, word, stopped in living:
        fresh = word if word is not None and now_ns - word.at_ns <= FRESH_NS else _NOTHING
        if fresh is not _NOTHING or stopped:
            spoke.add(number)
        groups = {group.group: group for group in fresh.groups}
        rows.append(
            RankProgress(
                rank=number, groups=groups, state="stopped" if stopped else "alive", hardware=number in struck
            )
        )
        for name, ranks in fresh.members.items():
            if len(ranks) > len(members.get(name, ())):
                members[name] = ranks
    if not members or len(spoke) < len(rows):
        return None
    return judge(rows, members)


def take(old: Standing | None, event: FactEvent) -> Standing | None:
    """Return the newest word of a rank: what was gathered when asked renews its stack, and no groups."""
    if old is not None and event.time_ns < old.at_ns:
        return old
    new = read(event)
    if not event.fields.get("source"):
        return new
    before = old or _NOTHING
    return replace(before, at_ns=new.at_ns, stack=new.stack or before.stack) if new.stack else old


def stacks(living: Iterable[tuple[int, Standing | None]], since_ns: int = 0) -> str:
    """Say where the ranks are, grouped by place, the smallest group last: it is the odd one."""
    groups = _grouped(living, since_ns)
    shown = [f"rank {_few(ranks)} in {place}" for place, ranks, _ in groups]
    if len(shown) > _PLACES_MAX:  # what is cut is neither the crowd nor the odd one
        half = _PLACES_MAX // 2
        shown = [*shown[:half], f"{len(shown) - _PLACES_MAX} more places", *shown[-half:]]
    return "; ".join(shown)


def outlier(living: Iterable[tuple[int, Standing | None]], since_ns: int = 0) -> str:
    """The whole stack of the smallest group, where most ranks are elsewhere; else ""."""
    groups = _grouped(living, since_ns)
    total = sum(len(ranks) for _, ranks, _ in groups)
    if len(groups) < 2 or 2 * len(groups[-1][1]) >= total:
        return ""
    _, ranks, stack = groups[-1]
    return f"rank {_few(ranks)}: {' < '.join(stack)}"


def _grouped(
    living: Iterable[tuple[int, Standing | None]], since_ns: int
) -> list[tuple[str, list[int], tuple[str, ...]]]:
    """Place, ranks and one stack of each group, the largest first; words from before the stand left out."""
    where: dict[str, tuple[list[int], tuple[str, ...]]] = {}
    for number, word in living:
        if word is not None and word.stack and word.at_ns >= since_ns:
            where.setdefault(_place(word.stack), ([], word.stack))[0].append(number)
    ordered = sorted(where.items(), key=lambda item: (-len(item[1][0]), item[1][0]))
    return [(place, ranks, stack) for place, (ranks, stack) in ordered]


def _place(stack: tuple[str, ...]) -> str:
    """The innermost frame of the user's, with what it waits in."""
    waits = next((frame for frame in stack if _waits(frame)), "")
    own = next((frame for frame in stack if not _TORCH.match(frame) and not _waits(frame)), stack[0])
    return f"{waits.partition(' ')[2]}, from {own}" if waits else stack[0]


def _waits(frame: str) -> bool:
    return _WAITING.search(frame.partition(" ")[2]) is not None


def _few(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:6]))
    return shown if len(ranks) <= 6 else f"{shown} and {len(ranks) - 6} more"
