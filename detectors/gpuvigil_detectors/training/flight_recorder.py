"""Who hangs, from the Flight Recorder dumps of a job's ranks.

The dumps are put side by side as collective progress and judged as every hang is (`blame.judge`): no rule
here is about one kind of job. What this file adds is how progress is read from a dump:
- A rank's place in a group is that of its newest record, or of `pg_status`. PyTorch numbers `pg_status` by a
  counter of the process and names groups by a counter of the job; both count in the order of creation, so
  where both lists are as long and no record contradicts, the n-th is the n-th.
- Groups that send and receive count these in the same status, so only records are believed there.
- A rank whose dump has no record of a collective that most of the group is in has not enqueued it.
- Sends and receives have no number that both ends share; the pending ones of a pair are counted instead.
- Members of any group that wrote no dump are silent: named only for waits that nothing else explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpuvigil_detectors.training.blame import judge
from gpuvigil_detectors.training.bounded_pickle import DumpError
from gpuvigil_detectors.training.flight_dump import Dump, Record, Status, read_dump
from gpuvigil_detectors.training.progress import GroupProgress, Kind, PeerOp, RankProgress
from gpuvigil_detectors.training.wording import names


@dataclass(frozen=True, slots=True, kw_only=True)
class FlightVerdict:
    """What the dumps tell. culprits: ranks, ascending; none when not clear: then it is among `candidates`."""

    culprits: tuple[int, ...]
    candidates: tuple[int, ...]
    kind: Kind
    group: str
    evidence: str


def judge_files(files: Iterable[tuple[str, bytes]]) -> FlightVerdict:
    """Read dumps, (file name, content), one after the other, and judge them.

    Files that are no dumps are listed in the evidence.

    Raises DumpError when none can be read, or two claim one rank.
    """
    dumps: dict[int, Dump] = {}
    refused = []
    for name, data in files:
        try:
            dump = read_dump(data, name)
        except DumpError as error:
            refused.append(f"{name[-80:]}: {error}")
            continue
        if dump.rank in dumps:
            raise DumpError(f"{name[-80:]}: a second dump of rank {dump.rank}")
        dumps[dump.rank] = dump
    if not dumps:
        raise DumpError("; ".join(refused[:3]) or "no files")
    return judge_dumps(list(dumps.values()), refused)


def judge_dumps(dumps: Sequence[Dump], refused: Sequence[str] = ()) -> FlightVerdict:
    """Judge dumps of different ranks of one job."""
    members = members_of(dumps)
    labels = {name: label for dump in dumps for name, label in dump.labels.items()}
    ranks = progress(dumps, members)
    shown = {labels.get(name, name): ranks_of for name, ranks_of in members.items()}
    blame = judge([labelled(rank, labels) for rank in ranks], shown)
    silent = [rank.rank for rank in ranks if rank.state == "silent"]
    notes = [blame.sentence]
    notes += [f"no dump of ranks {names(silent)}"] if silent else []
    notes += [f"{len(refused)} files could not be read ({refused[0][:200]})"] if refused else []
    return FlightVerdict(
        culprits=blame.culprits, candidates=blame.candidates, kind=blame.kind, group=blame.group,
        evidence="; ".join(notes),
    )  # fmt: skip


def progress(dumps: Sequence[Dump], members: Mapping[str, tuple[int, ...]]) -> list[RankProgress]:
    """One row a rank that wrote a dump or is in a group of one that did."""
    records = [record for dump in dumps for record in dump.records]
    mixed = {record.group for record in records if record.mixed}
    times = any(dump.times for dump in dumps)
    rows = {}
    for dump in dumps:
        status = {name: row for name, row in _status_by_name(dump).items() if name not in mixed}
        groups = set(status) | {record.group for record in dump.records if not record.between_two}
        rows[dump.rank] = {name: _place(name, dump, status.get(name), times) for name in groups}
    _fill_absent(rows, dumps, members)
    known = {dump.rank: _row(dump, rows[dump.rank], members, times) for dump in dumps}
    missing = {rank for ranks in members.values() for rank in ranks} - set(known)
    return [*known.values(), *(RankProgress(rank=rank, state="silent") for rank in sorted(missing))]


def members_of(dumps: Sequence[Dump]) -> dict[str, tuple[int, ...]]:
    """Members of every group. A name that two dumps give different members is not believed."""
    said: dict[str, set[tuple[int, ...]]] = {}
    for dump in dumps:
        for name, ranks in dump.members.items():
            said.setdefault(name, set()).add(ranks)
    return {name: next(iter(ranks)) for name, ranks in said.items() if len(ranks) == 1}


def _status_by_name(dump: Dump) -> dict[str, Status]:
    seen = {record.group: record.local_group for record in dump.records if record.local_group >= 0}
    numbers = dict(seen)
    if len(dump.status) == len(dump.members) and all(name.isdecimal() for name in dump.members):
        by_order = dict(zip(sorted(dump.members, key=int), sorted(dump.status), strict=True))
        if all(by_order.get(name) == number for name, number in seen.items()):
            numbers = by_order
    return {name: dump.status[number] for name, number in numbers.items() if number in dump.status}


def _place(name: str, dump: Dump, status: Status | None, times: bool) -> GroupProgress:
    """One rank's place in one group, from its records and, where it can be believed, its status."""
    own = [record for record in dump.records if record.group == name]
    pending = [record for record in own if not record.between_two and not record.completed]
    reached = [record.sequence for record in own]
    if status is not None and status.enqueued is not None:
        reached.append(status.enqueued)
    enqueued = max(reached, default=None)
    if pending:
        completed: int | None = min(record.sequence for record in pending) - 1
    elif status is not None:
        completed = status.completed if status.completed is not None else enqueued
    else:
        completed = enqueued
    begun = [record.sequence for record in pending if record.started]
    started = max(begun, default=completed) if times else None
    return GroupProgress(
        group=name, enqueued=enqueued, started=started, completed=completed,
        ops={record.sequence: record.op for record in pending},
        order=min((record.order for record in pending), default=None),
    )  # fmt: skip


def _fill_absent(
    rows: dict[int, dict[str, GroupProgress]], dumps: Sequence[Dump], members: Mapping[str, tuple[int, ...]]
) -> None:
    """Give the ranks whose dump says nothing of a group the place before the op that most of it is in."""
    for name, ranks in members.items():
        told = [rows[rank][name] for rank in ranks if rank in rows and name in rows[rank]]
        inside = [row for row in told if row.ops]
        if not inside or 2 * len(inside) < sum(rank in rows for rank in ranks):
            continue
        first = min(min(row.ops) for row in inside)
        if any(row.completed is not None and row.completed >= first for row in told):
            continue
        for rank in ranks:
            if rank in rows and name not in rows[rank]:
                rows[rank][name] = GroupProgress(group=name, enqueued=first - 1, completed=first - 1)


def _row(
    dump: Dump, groups: Mapping[str, GroupProgress], members: Mapping[str, tuple[int, ...]], times: bool
) -> RankProgress:
    pending = [record for record in dump.records if record.between_two and not record.completed]
    told = {record.group for record in pending if record.peer is not None}
    peers = tuple(
        _peer_op(record, members.get(record.group, ()), times)
        for record in pending
        if record.peer is not None or record.group not in told
    )
    return RankProgress(rank=dump.rank, groups=groups, peers=peers)


def _peer_op(record: Record, ranks: tuple[int, ...], times: bool) -> PeerOp:
    """A pending send or receive; peer -1 where record or group does not tell who is at the other end."""
    sends, number = record.peer or (False, -1)
    peer = ranks[number] if 0 <= number < len(ranks) else -1
    started = record.started if times else None
    return PeerOp(group=record.group, peer=peer, sends=sends, order=record.order, started=started)


def labelled(row: RankProgress, labels: Mapping[str, str]) -> RankProgress:
    """The same row with the names that people read."""
    groups = {
        labels.get(name, name): replace(place, group=labels.get(name, name))
        for name, place in row.groups.items()
    }
    peers = tuple(replace(op, group=labels.get(op.group, op.group)) for op in row.peers)
    return RankProgress(rank=row.rank, groups=groups, peers=peers, state=row.state)
