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
from gpuvigil_detectors.training.progress import Blame, Op, RankProgress, State
from gpuvigil_protos.entity import job_and_rank_of

_OPS: Final = "ops_"
_OPS_MAX: Final = 16
_OP: Final = re.compile(r"(\d{1,18}):(\d{1,18}):([sbc])(p?):([^:,]{0,40}):(\d{0,15}):([^:,]{0,40})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One rank's newest records, and when they were taken."""

    at_ns: int
    dump: Dump


def read(event: FactEvent) -> Told | None:
    """Read an event of kind collectives whose source is records; None where it tells no op."""
    where = job_and_rank_of(event.entity)
    records: list[Record] = []
    status: dict[int, Status] = {}
    members: dict[str, tuple[int, ...]] = {}
    for key, value in event.fields.items():
        words = value.split("|")
        place = standing.number(key.removeprefix(standing.PREFIX))
        if not key.startswith(standing.PREFIX) or place is None or len(words) != 5:
            continue
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
    dump = Dump(rank=where[1], members=members, status=status, records=tuple(records), times=times)
    return Told(at_ns=event.time_ns, dump=dump)


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
    dumps, states = [], dict[int, State]()
    for number, told, stopped in living:
        states[number] = "stopped" if stopped else "alive"
        if told is not None and told.at_ns >= since_ns:
            dumps.append(told.dump)
        elif not stopped:
            return None
    if not dumps:
        return None
    members = flight_recorder.members_of(dumps)
    rows = [
        replace(row, state=states.get(row.rank, row.state), hardware=row.rank in struck)
        for row in flight_recorder.progress(dumps, members)
    ]
    known = {row.rank for row in rows}
    rows += [
        RankProgress(rank=rank, state=state)
        for rank, state in states.items() if rank not in known
    ]  # fmt: skip
    found = judge(rows, members)
    left_out = _left_out(found, dumps)
    return replace(found, sentence=f"{found.sentence}; {left_out}") if left_out else found


def _left_out(found: Blame, dumps: Sequence[Dump]) -> str:
    """Say that a rank left an op out, or did one more, where the order of the ops before shows it."""
    if found.kind != "desync" or len(found.culprits) != 1:
        return ""
    ranks = {dump.rank: _ops(dump, found.group) for dump in dumps}
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


def _ops(dump: Dump, group: str) -> dict[int, Op]:
    return {row.sequence: row.op for row in dump.records if row.group == group and not row.between_two}


def _follows(ops: Mapping[int, Op], before: int, op: Op) -> set[Op]:
    """What came after an op wherever it was before a place."""
    return {ops[at + 1] for at, one in ops.items() if one == op and at + 1 < before and at + 1 in ops}
