"""One rank's Flight Recorder dump, checked and reduced to what progress needs.

Format: PyTorch torch/csrc/distributed/c10d/FlightRecorder.hpp, versions 2.x, as pickle or JSON. A dump holds
`pg_config` (group -> members), `pg_status` (last enqueued, started, completed of each group, by local number)
and `entries` (the newest records, or only those still active).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gpuvigil_detectors.training.bounded_pickle import FILE_BYTES_MAX, DumpError, read_pickle
from gpuvigil_detectors.training.progress import Op

RECORDS_MAX: Final = 200_000  # PyTorch keeps 2,000 unless told otherwise
_GROUPS_MAX: Final = 20_000
_RANK_MAX: Final = 1 << 20
_TEXT_MAX: Final = 200
_PEERS: Final = re.compile(r"(send|recv) (\d{1,7})(?:->|<-)(\d{1,7})\Z")
_VERSIONS: Final = re.compile(r"[12]\.\d{1,3}\Z")
# ops whose input has one size on every rank; the others may differ legally (all_to_all, list forms, roots)
_EQUAL_SIZE: Final = frozenset(
    {"all_reduce", "allreduce", "broadcast", "reduce", "_all_gather_base", "_reduce_scatter_base"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One op of one rank. sequence counts collectives of its group; order is its place in the rank's program.

    peer: (sends, peer's number inside the group) of a send or receive, None when the name does not tell.
    mixed: the group's counters have counted sends and receives too, so its status says little.
    """

    group: str
    local_group: int
    sequence: int
    order: int
    op: Op
    between_two: bool
    peer: tuple[bool, int] | None
    started: bool
    completed: bool
    mixed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Last enqueued, started and completed of one group; None where PyTorch says -1: not known."""

    enqueued: int | None
    started: int | None
    completed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """What one rank wrote. members: group -> global ranks in group order. labels: group -> what people read.

    records: those not completed, and of each group the newest of the others. times: starts were recorded.
    """

    rank: int
    members: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    status: Mapping[int, Status] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    times: bool = False


def read_dump(data: bytes, name: str) -> Dump:
    """Read a dump, pickle or JSON. The rank is the last number in `name`, checked against the groups.

    Where the name holds none, it is the one rank that is in every group of the dump.
    Raises DumpError with what was expected.
    """
    if len(data) > FILE_BYTES_MAX:
        raise DumpError(f"{len(data)} bytes, at most {FILE_BYTES_MAX} are read")
    top = _mapping(_json(data) if data[:1] in (b"{", b" ", b"\n") else read_pickle(data), "a dump")
    version = top.get("version")
    if not isinstance(version, str) or not _VERSIONS.match(version):
        raise DumpError(f"expected version 1.x or 2.x, got {str(version)[:20]!r}")
    members, labels = _groups(_mapping(top.get("pg_config", {}), "pg_config"))
    rank = _rank(name, members)
    entries = top.get("entries", [])
    if not isinstance(entries, list) or len(entries) > RECORDS_MAX:
        raise DumpError(f"expected entries, a list of at most {RECORDS_MAX}")
    records = [_record(_mapping(entry, "an entry"), place) for place, entry in enumerate(entries)]
    status = _status(_mapping(top.get("pg_status", {}), "pg_status"))
    times = any(row.started is not None for row in status.values()) or any(map(_begun, entries))
    return Dump(
        rank=rank, members=members, labels=labels, status=status, records=_needed(records), times=times
    )


def _needed(records: list[Record]) -> tuple[Record, ...]:
    """All that is pending and the newest of the rest: a job of thousands of ranks has to fit into memory."""
    newest: dict[tuple[str, bool], Record] = {}
    for record in records:
        key = (record.group, record.between_two)
        if record.completed and (key not in newest or record.sequence >= newest[key].sequence):
            newest[key] = record
    return (*newest.values(), *(record for record in records if not record.completed))


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DumpError(f"not JSON: {type(error).__name__}") from None


def _mapping(value: object, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise DumpError(f"expected {what}: a mapping, got {type(value).__name__}")
    return value


def _int(value: object, what: str, low: int = -1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 1 << 62:
        raise DumpError(f"expected {what}: a number from {low} on")
    return value


def _plain(value: object) -> object:
    """JSON of PyTorch writes these numbers as text."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value) else value


def _text(value: object) -> str:
    return value[:_TEXT_MAX] if isinstance(value, str) else ""


def _groups(config: Mapping[Any, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    if len(config) > _GROUPS_MAX:
        raise DumpError(f"{len(config)} groups, at most {_GROUPS_MAX} are read")
    members, labels = {}, {}
    for key, value in config.items():
        group = _mapping(value, "a group")
        name = _text(group.get("name", key)) or _text(key)
        given = group.get("ranks", [])
        listed = re.findall(r"\d{1,8}", given) if isinstance(given, str) else given
        if not isinstance(listed, list | tuple):
            raise DumpError("expected ranks of a group: a list")
        try:
            ranks = tuple(int(rank) for rank in listed)
        except (TypeError, ValueError):
            raise DumpError("expected ranks of a group: numbers") from None
        if len(set(ranks)) != len(ranks) or any(not 0 <= rank < _RANK_MAX for rank in ranks):
            raise DumpError(f"expected ranks of a group: each once, from 0 to {_RANK_MAX}")
        if not ranks:
            continue  # gloo names no members: such a group tells nothing
        members[name] = ranks
        labels[name] = f"{name} {_text(group.get('desc'))}".strip()
    return members, labels


def _rank(name: str, members: Mapping[str, tuple[int, ...]]) -> int:
    """The rank that wrote the file: by its name, and by the groups, which all contain their writer."""
    shared = set.intersection(*(set(ranks) for ranks in members.values())) if members else set()
    digits = re.findall(r"\d+", name.rpartition("/")[2])
    if digits:
        rank = int(digits[-1]) if len(digits[-1]) <= 7 else _RANK_MAX
        if rank >= _RANK_MAX or (members and rank not in shared):
            raise DumpError(f"the name says rank {digits[-1][:20]}, which is not in every group of the dump")
        return rank
    if len(shared) != 1:
        raise DumpError("the name holds no rank, and the groups do not tell it")
    return next(iter(shared))


def _status(given: Mapping[Any, Any]) -> dict[int, Status]:
    found = {}
    for key, value in list(given.items())[:_GROUPS_MAX]:
        row = _mapping(value, "a status")
        numbers = [
            _int(_plain(row.get(f"last_{what}_collective", -1)), f"last_{what}_collective")
            for what in ("enqueued", "started", "completed")
        ]
        known = [None if number < 0 else number for number in numbers]
        if isinstance(key, int) or (isinstance(key, str) and re.fullmatch(r"\d{1,9}", key)):
            found[int(key)] = Status(enqueued=known[0], started=known[1], completed=known[2])
    return found


def _record(entry: Mapping[Any, Any], place: int) -> Record:
    group = entry.get("process_group", "")
    name = _text(entry.get("profiling_name")).rpartition(":")[2] or _text(entry.get("profiling_name"))
    between_two = entry.get("is_p2p") is True
    sequence = _int(entry.get("collective_seq_id", -1), "collective_seq_id")
    op_id = entry.get("op_id")
    # a time that is not known is None in a pickle and 0 in JSON
    done = bool(entry.get("time_discovered_completed_ns")) or entry.get("state") == "completed"
    return Record(
        group=_text(group[0]) if isinstance(group, list | tuple) and group else _text(group),
        local_group=_int(entry.get("pg_id", -1), "pg_id"),
        sequence=sequence,
        order=_int(entry.get("record_id", place), "record_id"),
        op=op_of(name, _elements(entry.get("input_sizes")), _dtype(entry.get("input_dtypes"))),
        between_two=between_two,
        peer=peer_of(name) if between_two else None,
        started=done or _begun(entry),
        completed=done or entry.get("retired") is True,
        mixed=between_two or (isinstance(op_id, int) and op_id != sequence),
    )  # fmt: skip


def _begun(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("time_discovered_started_ns")) or entry.get("state") == "started"


def op_of(name: str, elements: int | None, dtype: str) -> Op:
    """Make an op; its size counts only where every rank must bring as many."""
    return Op(name=name, size=elements if name in _EQUAL_SIZE else None, dtype=dtype)


def peer_of(name: str) -> tuple[bool, int] | None:
    """Return (sends, the other end's number inside the group) of a `send 0->1`, None of what is none."""
    pair = _PEERS.match(name)
    return (pair[1] == "send", int(pair[3])) if pair else None


def _elements(sizes: object) -> int | None:
    if not isinstance(sizes, list | tuple) or not sizes:
        return None
    total = 0
    for shape in sizes[:64]:
        if not isinstance(shape, list | tuple) or len(shape) > 16:
            return None
        if not all(isinstance(side, int) and 0 <= side < 1 << 48 for side in shape):
            return None
        total += math.prod(shape)
    return total


def _dtype(given: object) -> str:
    if isinstance(given, list | tuple):
        return ",".join(sorted({_text(one) for one in given[:64]}))
    return _text(given)
