"""The budgets of the safety kernel: what may be interrupted and taken, an hour, a day, a domain, a node.

What counts is what is interrupted: running jobs and their GPUs. The steps of one case on one node are one
use of the domain's pause and of the node's attempts; each running job that ends is counted each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from .action import INTERRUPTS, ON_JOB, JobState, Limits, Past
from .safety_facts import KINDS, Question
from .safety_limits import checked_limits
from .safety_values import Unknown, count, part, shown

HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0
TAKES_NODE: Final = frozenset({"hold", "reset_gpu", "reboot"})
CONSUMES: Final = INTERRUPTS | {"hold"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One budget compared. asks: within it only if a person approves."""

    passed: bool
    says: str
    asks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The question with its checked past."""

    question: Question
    limits: Limits
    past: tuple[Past, ...]
    ends: tuple[JobState, ...]

    def recent(self, seconds: float) -> list[Past]:
        """What was done within so many seconds."""
        start = self.question.since(seconds)
        return [past for past in self.past if past.at_ns > start]


def _flaw(past: Past, now_ns: int) -> str:
    words = (past.id, past.node, past.domain, past.partition, past.job, past.case)
    if any(type(word) is not str for word in words):
        return "a name is not known"
    if past.kind not in KINDS or type(past.open) is not bool:
        return "kind or open is malformed"
    if past.jobs is not None and not (type(past.jobs) is tuple and all(type(j) is str for j in past.jobs)):
        return "jobs is malformed"
    if type(past.gpus) is not int or past.gpus < 0:
        return f"gpus is {shown(past.gpus)}"
    if type(past.at_ns) is not int or not 0 < past.at_ns <= now_ns:
        return f"its time is {shown(past.at_ns)}: in the future, or none"
    return ""


def checked_past(question: Question) -> tuple[Past, ...]:
    """Return what was done; raises Unknown when the record is missing, malformed or of the future."""
    given = question.state.past
    if type(given) is not tuple:
        raise Unknown("what was done before is not known")
    now_ns = question.now
    for past in given:
        flaw = "malformed" if type(past) is not Past else _flaw(past, now_ns)
        if flaw:
            raise Unknown(f"past action {shown(getattr(past, 'id', None))}: {flaw}")
    if len({past.id for past in given}) != len(given):
        raise Unknown("two past actions have one id")
    return given


def _ended(past: Past) -> tuple[str, ...]:
    """Running jobs that a past action ended; where nobody wrote it down, one if it had GPUs."""
    if past.kind not in INTERRUPTS:
        return ()
    if past.jobs is not None:
        return past.jobs
    return (past.job,) if past.gpus else ()


def _goes(past: Iterable[Past], case: str, kind: str) -> int:
    """How often a node or job was tried, this proposal included: the most repeated step of each case."""
    tally = Counter((each.case or each.id, each.kind) for each in past)
    tally[case, kind] += 1  # type: ignore[index]
    most: dict[str, int] = {}
    for (of, _), times in tally.items():
        most[of] = max(most.get(of, 0), times)
    return sum(most.values())


def _once(books: Books) -> Line:
    known = any(past.id == books.question.proposal.id for past in books.past)
    return Line(passed=not known, says="its id was used before" if known else "its id is new")


def _declared(books: Books) -> Line:
    """The proposal's own number becomes the record: it may not be less than the truth."""
    says, need = count(books.question.proposal.gpus, "the proposal's gpus"), _need(books)
    good = need <= says <= max(books.question.fleet.gpus, need)
    return Line(passed=good, says=f"says {says} GPUs, the running jobs that it ends have {need}")


def _need(books: Books) -> int:
    return sum(job.gpus for job in books.ends)


def _jobs_an_hour(books: Books) -> Line:
    used, need = sum(len(_ended(past)) for past in books.recent(HOUR_S)), len(books.ends)
    most = books.limits.jobs_an_hour
    return Line(passed=not need or used + need <= most, says=f"jobs this hour {used} + {need} of {most}")


def _gpus_an_hour(books: Books) -> Line:
    """The floor is one node's worth; a first job beyond that is a person's to allow."""
    used, need = sum(past.gpus for past in books.recent(HOUR_S) if _ended(past)), _need(books)
    share = part(books.limits.gpus_share_an_hour, books.question.fleet.gpus)
    most = max(share, books.question.node.gpus, 1)
    over = need > 0 and used + need > most
    says = f"GPUs this hour {used} + {need} of {most:g}"
    return Line(passed=not over or used == 0, says=says, asks=over)


def _stops_of_job(books: Books) -> Line:
    hour, day = books.limits.job_stops_an_hour, books.limits.job_stops_a_day
    lately = Counter(job for past in books.recent(HOUR_S) for job in _ended(past))
    today = Counter(job for past in books.recent(DAY_S) for job in _ended(past))
    worst_hour = max((lately[job.job] + 1 for job in books.ends), default=0)
    worst_day = max((today[job.job] + 1 for job in books.ends), default=0)
    says = f"stops of a job {worst_hour} of {hour} an hour, {worst_day} of {day} a day"
    return Line(passed=worst_hour <= hour and worst_day <= day, says=says)


def _goes_of_job(books: Books) -> Line:
    """A job that is dead again after each start is parked, too."""
    asked, most = books.question.proposal, books.limits.job_stops_a_day
    if asked.kind not in ON_JOB:
        return Line(passed=True, says="no job's start")
    of = (past for past in books.recent(DAY_S) if past.kind in INTERRUPTS and past.job == asked.job)
    goes = _goes(of, asked.case, asked.kind)
    return Line(passed=goes <= most, says=f"goes at job {goes} of {most} a day")


def _big_job(books: Books) -> Line:
    most = books.limits.job_gpus_without_approval
    size = max((job.gpus for job in books.ends), default=0)
    return Line(passed=True, says=f"job of {size} GPUs, {most} without approval", asks=size > most)


def _unavailable(books: Books) -> Line:
    fleet, node, limits = books.question.fleet, books.question.node, books.limits
    where = {past.node: past.partition for past in books.past if past.open}
    where |= {name: fleet[name].partition for name in {*fleet.ours, *where} if name in fleet}
    if books.question.kind != "hold" or node.node in where:
        return Line(passed=True, says=f"takes no further node, we hold {len(where)}")
    mine = sum(partition == node.partition for partition in where.values())
    most, most_here = (
        max(1, min(int(part(limits.unavailable_share, size)), limits.unavailable_max))
        for size in (len(fleet), fleet.partitions[node.partition])
    )
    says = f"nodes held {len(where)} + 1 of {most}, in its partition {mine} + 1 of {most_here}"
    return Line(passed=len(where) < most and mine < most_here, says=says)


def _domain_pause(books: Books) -> Line:
    asked, fleet, domain = books.question.proposal, books.question.fleet, books.question.node.domain
    pause_s = books.limits.domain_pause_s
    first: dict[tuple[str, str], int] = {}
    for past in books.past:
        now_in = fleet[past.node].domain if past.node in fleet else past.domain
        if past.kind in TAKES_NODE and domain in (past.domain, now_in):
            unit = (past.case or past.id, past.node)
            first[unit] = min(first.get(unit, past.at_ns), past.at_ns)
    mine = (asked.case, asked.node)
    since = books.question.since(pause_s)
    others = sum(at_ns > since for unit, at_ns in first.items() if unit != mine)
    free = asked.kind not in TAKES_NODE or mine in first or not others
    return Line(passed=free, says=f"others taken in its domain within {pause_s:g} s: {others}")


def _attempts(books: Books) -> Line:
    asked, most = books.question.proposal, books.limits.node_attempts_a_day
    of = (past for past in books.recent(DAY_S) if past.kind in CONSUMES and past.node == asked.node)
    goes = _goes(of, asked.case, asked.kind)
    return Line(passed=goes <= most, says=f"attempts at its node {goes} of {most} a day")


BUDGETS: Final[tuple[Callable[[Books], Line], ...]] = (
    _once,
    _declared,
    _jobs_an_hour,
    _gpus_an_hour,
    _stops_of_job,
    _goes_of_job,
    _big_job,
    _unavailable,
    _domain_pause,
    _attempts,
)


def compare(question: Question) -> tuple[Line, ...]:
    """Return every budget compared; raises Unknown when the record or the limits are not sane."""
    limits, past = checked_limits(question.state.limits), checked_past(question)
    books = Books(question=question, limits=limits, past=past, ends=question.interrupted())
    return tuple(budget(books) for budget in (BUDGETS if question.kind in CONSUMES else (_once,)))
