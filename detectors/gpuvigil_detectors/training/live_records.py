"""Torch's own records of ranks that are asked while they hang: read as dumps, judged as dumps are.

A rank's word is an event: of each process group its last ops (`order:sequence:state:name:elements:type`) and
how far it came. Words come from jobs and are hostile until read: what is no op is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gpuvigil_detectors.base import FactEvent
from gpuvigil_detectors.training import flight_recorder, standing
from gpuvigil_detectors.training.blame import judge
from gpuvigil_detectors.training.flight_dump import Dump, Record, Status, op_of, peer_of
from gpuvigil_detectors.training.progress import Blame, GroupProgress, Op, RankProgress, State
from gpuvigil_protos.entity import job_and_rank_of

_OPS: Final = "ops_"
_OPS_MAX: Final = 16
_OP: Final = re.compile(r"(\d{1,18}):(\d{1,18}):([sbc])(p?):([^:,]{0,40}):(\d{0,15}):([^:,]{0,40})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One rank's newest records, when they were taken, and the groups that it has never used."""

    at_ns: int
    dump: Dump
    unused: frozenset[str] = frozenset()


def read(event: FactEvent) -> Told | None:
    """Read an event of kind collectives whose source is records; None where it tells no op."""
    where = job_and_rank_of(event.entity)
    records: list[Record] = []
    status: dict[int, Status] = {}
    members: dict[str, tuple[int, ...]] = {}
    labels: dict[str, str] = {}
    for key, value in event.fields.items():
        words = value.split("|")
        place = standing.number(key.removeprefix(standing.PREFIX))
        if not key.startswith(standing.PREFIX) or place is None or len(words) != 6:
            continue
        labels[words[0]] = f"{words[0]} {words[5]}".strip()
        records += _records(event.fields.get(f"{_OPS}{place}", ""), words[0], place)
        counts = [standing.number(word) for word in words[1:4]]
        if any(count is not None for count in counts):
            status[place] = Status(enqueued=counts[0], started=counts[1], completed=counts[2])
        if ranks := standing.ranks_of(words[4]):
            members[words[0]] = ranks
    if where is None or not records:
        return None
    begun = any(record.started and not record.completed for record in records)
    times = begun or any(row.started is not None for row in status.values())
    dump = Dump(
        rank=where[1], members=members, labels=labels, status=status, records=tuple(records), times=times
    )
    used = {record.group for record in records}
    return Told(at_ns=event.time_ns, dump=dump, unused=frozenset(members.keys() - used))


def _records(text: str, group: str, place: int) -> list[Record]:
    found = [match for word in text.split(",")[:_OPS_MAX] if (match := _OP.match(word))]
    return [
        Record(
            group=group, local_group=place, sequence=int(match[2]), order=int(match[1]),
            op=op_of(match[5], int(match[6]) if match[6] else None, match[7].replace("+", ",")),
            between_two=bool(match[4]), peer=peer_of(match[5]) if match[4] else None,
            started=match[3] != "s", completed=match[3] == "c", mixed=bool(match[4]),
        )
        for match in found
    ]  # fmt: skip


def blame(
    living: Iterable[tuple[int, Told | None, bool]], since_ns: int, struck: frozenset[int] = frozenset()
) -> Blame | None:
    """Judge a job's ranks: (number, records, whether its threads stand still). None: too few have told.

    since_ns: when the job came to a stand; records from before say nothing of it. struck: ranks whose device
    has reported a fatal fault.
    """
    states: dict[int, State] = {}
    told: dict[int, Told] = {}
    for number, one, stopped in living:
        states[number] = "stopped" if stopped else "alive"
        if one is not None and one.at_ns >= since_ns:
            told[number] = one
        elif not stopped:
            return None
    if not told:
        return None
    dumps = [one.dump for one in told.values()]
    members = flight_recorder.members_of(dumps)
    labels = {name: label for dump in dumps for name, label in dump.labels.items()}
    rows = {row.rank: row for row in flight_recorder.progress(dumps, members)}
    rows |= {rank: RankProgress(rank=rank) for rank in states.keys() - rows.keys()}
    whole = [
        replace(
            flight_recorder.labelled(_with_unused(row, told.get(rank)), labels),
            state=states.get(rank, row.state), hardware=rank in struck,
        )
        for rank, row in rows.items()
    ]  # fmt: skip
    found = judge(whole, {labels.get(name, name): ranks for name, ranks in members.items()})
    left_out = _left_out(found, dumps, labels)
    return replace(found, sentence=f"{found.sentence}; {left_out}") if left_out else found


def _with_unused(row: RankProgress, told: Told | None) -> RankProgress:
    """Put a rank before the first op of the groups that it has never used: others may wait for it there."""
    if told is None:
        return row
    more = {name: GroupProgress(group=name, enqueued=0, completed=0) for name in told.unused}
    return replace(row, groups=more | dict(row.groups))


def _left_out(found: Blame, dumps: Sequence[Dump], labels: Mapping[str, str]) -> str:
    """Say that a rank left an op out, or did one more, where the order of the ops before shows it."""
    if found.kind != "desync" or len(found.culprits) != 1:
        return ""
    ranks = {dump.rank: _ops(dump, labels, found.group) for dump in dumps}
    own = ranks.pop(found.culprits[0], {})
    others: dict[int, Op] = {}
    for ops in ranks.values():
        others |= ops
    at = min((s for s, op in own.items() if s in others and others[s] != op), default=None)
    if at is None:
        return ""
    said = []
    if _follows(others, at, others[at]) == {own[at]}:
        said.append(f"left out {others[at].name} {at}")
    if _follows(others, at, own[at]) == {others[at]}:
        said.append(f"did {own[at].name} once more than the others")
    return f"by the order so far rank {found.culprits[0]} {' or '.join(said)}" if said else ""


def _ops(dump: Dump, labels: Mapping[str, str], label: str) -> dict[int, Op]:
    """A rank's ops in one group by number."""
    own = (row for row in dump.records if labels.get(row.group, row.group) == label)
    return {row.sequence: row.op for row in own if not row.between_two}


def _follows(ops: Mapping[int, Op], before: int, op: Op) -> set[Op]:
    """What came after an op wherever it was before a place."""
    return {ops[at + 1] for at, one in ops.items() if one == op and at + 1 < before and at + 1 in ops}
