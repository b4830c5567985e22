"""Progress of this process's collectives: how far each process group came and, when asked, its last ops.

The only file that touches torch's private API. Table of versions:

    torch      call                                            what it tells
    2.9 -      _dump_fr_trace_json(includeCollectives=False)   NCCL and gloo: enqueued, started, completed
    2.4 - 2.8  _dump_nccl_trace_json(includeCollectives=False) NCCL alone
    others     _get_sequence_number_for_group()                enqueued alone

`timeout_s` reads `_get_default_group()._get_backend(device).options._timeout`, where there is one.

0.05 ms. `recent` takes the full dump, with ops and without stacks, from the same calls; it may cost a second
and is called off the training thread, once a hang is suspected. Nothing waits for a device.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from typing import Any, Dict, Iterator, List

from gpuvigil import flight

GROUPS_MAX = 12
TIMEOUT_MAX_S = 10**9
DUMP_BYTES_MAX = 16 << 20  # torch keeps 2,000 ops: 1 MB


def progress() -> List[Dict[str, Any]]:
    """Return one row a process group: name, ranks, enqueued, started, completed; None = not told."""
    module = sys.modules.get("torch.distributed.distributed_c10d")
    if module is None:
        return []
    found = _from_trace() or _from_sequences(module)
    ranks = _members(module)
    for row in found:
        row["ranks"] = ranges(ranks.get(row["group"], []))
    return found[:GROUPS_MAX]


def recent() -> List[Dict[str, Any]]:
    """Return one row a process group as `flight.condense` makes it; none where torch keeps no records."""
    module = sys.modules.get("torch.distributed.distributed_c10d")
    if module is None:
        return []
    for dump in _dumps(includeCollectives=True):
        members = {name: ranges(ranks) for name, ranks in _members(module).items()}
        if rows := flight.condense(dump, members):
            # a group that this rank has never used is in no record, and others may wait for it there
            unused = [row["group"] for row in _from_sequences(module) if not row["enqueued"]]
            return flight.with_unused(rows, unused, members)
    return []


def timeout_s() -> int:
    """Return how long the default group waits for a collective: whole seconds, rounded up; 0 = not told."""
    module = sys.modules.get("torch.distributed.distributed_c10d")
    with contextlib.suppress(Exception):  # no default group, another version's names, a backend without it
        group = module._get_default_group()  # type: ignore[union-attr]
        told = [group._get_backend(device).options._timeout for device in group._device_types]
        seconds: float = max(one.total_seconds() for one in told)
        return min(TIMEOUT_MAX_S, math.ceil(seconds))
    return 0


def _dumps(**options: bool) -> Iterator[Dict[str, Any]]:
    """Yield what torch's recorders tell; one that is too large is asked for its pending ops alone."""
    native = sys.modules.get("torch._C._distributed_c10d")
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        call = getattr(native, name, None)
        if call is None:
            continue
        try:
            text = call(**options)
            if len(text) > DUMP_BYTES_MAX:
                text = call(onlyActive=True, **options)
            found = json.loads(text) if len(text) <= DUMP_BYTES_MAX else None
        except Exception:  # noqa: BLE001, S112 - another version's signature, or a backend without it
            continue
        if isinstance(found, dict):
            yield found


def _from_trace() -> List[Dict[str, Any]]:
    for dump in _dumps(includeCollectives=False):
        status = dump.get("pg_status")
        rows = [
            {"group": str(group)[:40], "enqueued": flight.count(row.get("last_enqueued_collective")),
             "started": flight.count(row.get("last_started_collective")),
             "completed": flight.count(row.get("last_completed_collective"))}
            for group, row in (status if isinstance(status, dict) else {}).items() if isinstance(row, dict)
        ]  # fmt: skip
        if rows:
            return rows
    return []


def _from_sequences(module: Any) -> List[Dict[str, Any]]:
    rows = []
    for group, name in dict(getattr(getattr(module, "_world", None), "pg_names", {})).items():
        try:
            enqueued = int(group._get_sequence_number_for_group())
        except Exception:  # noqa: BLE001, S112 - a backend that counts nothing
            continue
        rows.append({"group": str(name)[:40], "enqueued": enqueued, "started": None, "completed": None})
    return rows


def _members(module: Any) -> Dict[str, List[int]]:
    """Global ranks of each group, by name."""
    world = getattr(module, "_world", None)
    names, ranks = getattr(world, "pg_names", {}), getattr(world, "pg_group_ranks", {})
    found: Dict[str, List[int]] = {}
    for group, name in dict(names).items():
        found[str(name)[:40]] = sorted(int(rank) for rank in dict(ranks.get(group, {})))
    return found


def ranges(ranks: List[int]) -> str:
    """Write ranks as ranges with a stride: `0-7`, `0-56/8`, `1,4,5`."""
    parts: List[str] = []
    at = 0
    while at < len(ranks):
        end = at + 1
        stride = ranks[end] - ranks[at] if end < len(ranks) else 1
        while end < len(ranks) and ranks[end] - ranks[end - 1] == stride:
            end += 1
        if end - at >= 3:
            parts.append("%d-%d%s" % (ranks[at], ranks[end - 1], "" if stride == 1 else "/%d" % stride))
            at = end
        else:
            parts.append(str(ranks[at]))
            at += 1
    return ",".join(parts)
