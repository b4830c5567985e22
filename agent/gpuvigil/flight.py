"""A Flight Recorder dump condensed to what tells who waits for whom: of each process group its last ops.

Of 2,000 records a few matter: the oldest that are pending, the newest that are complete. An op is
`order:sequence:state:name:elements:type`, state s (scheduled), b (begun) or c (complete), with a p for a send
or receive. Format: PyTorch torch/csrc/distributed/c10d/FlightRecorder.hpp, versions 2.x, as JSON.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Optional

GROUPS_MAX = 7
OPS_MAX = 8
DONE_KEPT = 4
NAME_MAX, TYPE_MAX, RANKS_MAX = 32, 24, 120
_NUMBER = re.compile(r"-?\d{1,18}\Z")
_UNSAFE = re.compile(r"[^A-Za-z0-9_ .<>+-]")


def condense(dump: Mapping[str, Any], members: Mapping[str, str]) -> List[Dict[str, Any]]:
    """Return one row a group, those with pending ops first: group, about, ranks, counts, ops.

    members: group -> its ranks as text, from torch's own tables (gloo's dumps do not say).
    """
    entries = [entry for entry in _list(dump.get("entries")) if isinstance(entry, dict)]
    by_group: Dict[str, List[Dict[str, Any]]] = {}
    for place, entry in enumerate(entries):
        entry.setdefault("record_id", place)
        by_group.setdefault(_group(entry)[0], []).append(entry)
    status = dump.get("pg_status")
    told = status if isinstance(status, dict) else {}
    rows = [_row(name, found, told, members.get(name, "")) for name, found in by_group.items()]
    rows.sort(key=lambda row: all(op.split(":")[2].startswith("c") for op in row["ops"]))
    return rows[:GROUPS_MAX]


def with_unused(
    rows: List[Dict[str, Any]], unused: List[str], members: Mapping[str, str]
) -> List[Dict[str, Any]]:
    """Add groups that have no op yet, as far as there is room."""
    known = {row["group"] for row in rows}
    more: List[Dict[str, Any]] = [
        {"group": name, "about": "", "ranks": _fit(members.get(name, "")), "enqueued": 0, "started": None,
         "completed": 0, "ops": []}
        for name in unused if name not in known
    ]  # fmt: skip
    return [*rows, *more][:GROUPS_MAX]


def _fit(ranks: str) -> str:
    return ranks if len(ranks) <= RANKS_MAX else ""


def _row(name: str, entries: List[Dict[str, Any]], status: Mapping[Any, Any], ranks: str) -> Dict[str, Any]:
    row: Dict[str, Any] = {
        "group": name, "about": _group(entries[-1])[1], "ranks": _fit(ranks),
        "enqueued": None, "started": None, "completed": None,
        "ops": [_op(entry) for entry in _needed(entries)],
    }  # fmt: skip
    own = status.get(str(entries[-1].get("pg_id")))
    if isinstance(own, dict) and not any(_mixed(entry) for entry in entries):
        for what in ("enqueued", "started", "completed"):
            row[what] = count(own.get("last_%s_collective" % what))
    return row


def _needed(entries: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The oldest that is pending, the newest that are complete, then the other pending ones, newest first."""
    pending = [entry for entry in entries if not _complete(entry)]
    done = [entry for entry in entries if _complete(entry)][: -DONE_KEPT - 1 : -1]
    return [*pending[:1], *done, *pending[:0:-1]][:OPS_MAX]


def _op(entry: Dict[str, Any]) -> str:
    state = "c" if _complete(entry) else "b" if _begun(entry) else "s"
    name = str(entry.get("profiling_name", "")).rpartition(":")[2]
    elements = _elements(entry.get("input_sizes"))
    return "%d:%d:%s%s:%s:%s:%s" % (
        count(entry.get("record_id")) or 0, count(entry.get("collective_seq_id")) or 0, state,
        "p" if entry.get("is_p2p") is True else "", _UNSAFE.sub("_", name)[:NAME_MAX],
        "" if elements is None else elements, _types(entry.get("input_dtypes")),
    )  # fmt: skip


def _group(entry: Mapping[str, Any]) -> List[str]:
    given = _list(entry.get("process_group")) or [entry.get("process_group", "")]
    return [_UNSAFE.sub("_", str(part))[:40] for part in (given[0], given[1] if len(given) > 1 else "")]


def _complete(entry: Mapping[str, Any]) -> bool:
    """Gloo knows no times: what it has done with is retired."""
    done = bool(entry.get("time_discovered_completed_ns"))
    return done or entry.get("state") == "completed" or entry.get("retired") is True


def _begun(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("time_discovered_started_ns")) or entry.get("state") == "started"


def _mixed(entry: Mapping[str, Any]) -> bool:
    """Sends and receives are counted in the group's status too, which then says little."""
    return entry.get("is_p2p") is True or entry.get("op_id") != entry.get("collective_seq_id")


def _elements(sizes: Any) -> Optional[int]:
    total = 0
    for shape in _list(sizes):
        product = 1
        for side in _list(shape):
            product *= side if isinstance(side, int) and 0 <= side < 1 << 48 else 0
        total += product
    return total if sizes and total < 10**15 else None


def _types(given: Any) -> str:
    found = sorted({str(one) for one in _list(given)[:64]})
    return _UNSAFE.sub("_", "+".join(found))[:TYPE_MAX]


def _list(value: Any) -> List[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def count(value: Any) -> Optional[int]:
    """A count; None for -1 (a start that gloo does not know) and for what is none."""
    text = str(value)
    return int(text) if _NUMBER.match(text) and int(text) >= 0 else None
