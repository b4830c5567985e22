"""Sentences about collective progress, with numbers that a person can look up in the dumps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gpuvigil_detectors.training.group_table import GroupTable
from gpuvigil_detectors.training.progress import Op
from gpuvigil_detectors.training.waits import Mark, WaitGraph

_NAMES_MAX: Final = 8


def names(ranks: Iterable[int]) -> str:
    """`3, 5, 9`; a long list is cut and counted."""
    listed = sorted(ranks)
    cut = ", ".join(map(str, listed[:_NAMES_MAX]))
    return cut if len(listed) <= _NAMES_MAX else f"{cut} and {len(listed) - _NAMES_MAX} more"


def clause(graph: WaitGraph, rank: int, mark: Mark) -> str:
    """What one culprit shows."""
    name, sequence = mark.place
    if mark.kind == "dead":
        return f"the process of rank {rank} ended"
    if mark.kind == "silent":
        return f"nothing came from rank {rank}, which others wait for in group {name}"
    stopped = (
        " lives without a heartbeat (interpreter lock held, or stopped)" if mark.kind == "stopped" else ""
    )
    lead = f"rank {rank}{stopped}"
    table = graph.tables.get(name)
    if table is None or not sequence:
        return f"{lead} has not posted its send or receive in group {name}" if name else lead
    if mark.kind in ("host", "stopped"):
        return (
            f"{lead}: {_behind(table, rank, sequence)}"
            if stopped
            else f"{lead} {_behind(table, rank, sequence)}"
        )
    return f"{lead} {_inside(table, rank, mark)}"


def _what(table: GroupTable, sequence: int) -> str:
    return f"{table.op(sequence).name or 'collective'} {sequence} of group {table.name}"


def _behind(table: GroupTable, rank: int, sequence: int) -> str:
    row = table.rows.get(rank)
    waiting = sum(other.last >= sequence for other in table.pending.values())
    enqueued = row.enqueued if row else None
    of = len(table.members)
    place = "told nothing of its place" if enqueued is None else f"enqueued up to {enqueued}"
    return f"{place}, {waiting} of {of} members wait in {_what(table, sequence)}"


def _inside(table: GroupTable, rank: int, mark: Mark) -> str:
    sequence = mark.place[1]
    what, op = _what(table, sequence), table.op(sequence)
    if mark.kind == "launch":
        return f"enqueued {what} and has not started it, others have"
    if mark.kind == "desync":
        row = table.rows.get(rank)
        own = row.ops.get(sequence) if row else None
        if own is not None and own == op:  # the others are in another group
            return f"waits in {what} for others, who wait for it in another group"
        said = f"{own.name}{_brought(own)}" if own else "something else"
        return f"does {said} where others do {what}{_brought(op)}"
    done = len(table.done(sequence))
    if done:
        return f"has not completed {what}, which {done} of {len(table.members)} members completed"
    return f"has a reported hardware fault and is inside {what}"


def _brought(op: Op) -> str:
    """Size and type of what a rank brings, where they say anything."""
    return f" ({op.size} x {op.dtype})" if op.size is not None else f" ({op.dtype})" if op.dtype else ""
