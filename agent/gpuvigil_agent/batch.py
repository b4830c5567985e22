"""Samples become batches: a dictionary of series in groups of one period, and packed columns.

A series that is not read at a tick is NaN there. New series grow the dictionary at once; a series absent
for `FORGET_S` leaves it. Each change is a new dictionary version, and a batch never mixes versions.
"""

from __future__ import annotations

import array
from collections.abc import Container, Iterable
from typing import Final

from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos.codec import (
    GROUPS_PER_NODE_MAX,
    SERIES_PER_NODE_MAX,
    TICKS_PER_BLOCK_MAX,
    blocks_crc,
    pack_float32,
)
from gpuvigil_protos.v1 import stream_pb2 as pb

FORGET_S: Final = 900.0
SEAL_BYTES: Final = 512 << 10
_NAN: Final = float("nan")
Key = tuple[str, str]


class Group:
    """Series of one period: their columns, and the rows gathered since the last seal."""

    def __init__(self, number: int, period_s: float, *, steps: bool = False) -> None:
        self.number, self.period_s, self.steps = number, period_s, steps
        self.columns: dict[Key, int] = {}
        self.seen_s: list[float] = []
        self.ticks: list[int] = []
        self.rows: list[bytes] = []

    def append(self, tick_ns: int, at_s: float, samples: Iterable[Sample]) -> int:
        """Add one tick. Every series must have its column; returns how many values are present."""
        row = array.array("d", [_NAN]) * len(self.columns)
        present = 0
        for metric, entity, value in samples:
            column = self.columns.get((metric.name, entity))
            if column is not None:
                row[column] = value
                self.seen_s[column] = at_s
                present += value == value  # noqa: PLR0124 - NaN differs from itself
        self.ticks.append(tick_ns)
        self.rows.append(pack_float32(row))
        return present

    def forget(self, before_s: float) -> bool:
        """Remove series not seen since `before_s`; True when any went."""
        kept = [(key, self.seen_s[column]) for key, column in self.columns.items()
                if self.seen_s[column] >= before_s]  # fmt: skip
        if len(kept) == len(self.columns):
            return False
        self.columns = {key: column for column, (key, _) in enumerate(kept)}
        self.seen_s = [seen for _, seen in kept]
        return True


class Sealed:
    """What a flush yields: a Batch without sequence, its dictionary, and how many samples it holds."""

    def __init__(self, batch: pb.Batch, dictionary: pb.Dictionary, samples: int) -> None:
        self.batch, self.dictionary, self.samples = batch, dictionary, samples


class BatchBuilder:
    """Gather ticks, seal them into batches, keep the dictionary."""

    def __init__(self) -> None:
        self.version = 1
        self.overflow = 0
        self._groups: dict[float | str, Group] = {}
        self._numbers = 0
        self._sealed: list[Sealed] = []
        self._samples = 0
        self._bytes = 0
        self._dictionary: pb.Dictionary | None = None

    @property
    def series(self) -> int:
        """Return how many series the dictionary has."""
        return sum(len(group.columns) for group in self._groups.values())

    def add(self, tick_ns: int, at_s: float, period_s: float, samples: list[Sample]) -> None:
        """Add what was read together at one tick with one period; new series make a new version."""
        self._add(self._group(period_s, period_s), tick_ns, at_s, samples)

    def add_step(self, entity: str, end_ns: int, at_s: float, samples: list[Sample]) -> None:
        """Add one step of a rank's loop, at the time at which it ended; a rank has a group of its own.

        Where the wire allows no more groups, the rank that has been silent for longest leaves.
        """
        if entity not in self._groups and len(self._groups) >= GROUPS_PER_NODE_MAX:
            ranks = [key for key, group in self._groups.items() if group.steps]
            self._drop(min(ranks, key=lambda key: max(self._groups[key].seen_s, default=0.0)))
        self._add(self._group(entity, 1.0, steps=True), end_ns, at_s, samples)

    def _group(self, key: float | str, period_s: float, *, steps: bool = False) -> Group:
        group = self._groups.get(key)
        if group is None:
            self._numbers += 1
            group = self._groups[key] = Group(self._numbers, period_s, steps=steps)
        return group

    def _add(self, group: Group, tick_ns: int, at_s: float, samples: list[Sample]) -> None:
        new = [key for key in ((s.metric.name, s.entity) for s in samples) if key not in group.columns]
        if new and (room := SERIES_PER_NODE_MAX - self.series) < len(new):
            self.overflow += len(new) - max(0, room)
            new = new[: max(0, room)]
        if new:
            self._change(group)
            for key in new:
                group.columns.setdefault(key, len(group.columns))
            group.seen_s += [at_s] * (len(group.columns) - len(group.seen_s))
        if not group.columns:
            return
        self._samples += group.append(tick_ns, at_s, samples)
        self._bytes += len(group.rows[-1])
        if self._bytes >= SEAL_BYTES or len(group.ticks) >= TICKS_PER_BLOCK_MAX:
            self._seal()

    def keep_ranks(self, living: Container[str]) -> None:
        """Let the groups of ranks go that have ended: a node that runs many short jobs needs the room."""
        for key in [key for key, group in self._groups.items() if group.steps and key not in living]:
            self._drop(key)

    def _drop(self, key: float | str) -> None:
        self._change(self._groups[key])
        del self._groups[key]

    def forget(self, now_s: float) -> None:
        """Let series go that have been absent for FORGET_S or three of their periods; a rank's group too."""
        for key, group in list(self._groups.items()):
            limit = now_s - max(FORGET_S, 3 * group.period_s)
            if any(seen < limit for seen in group.seen_s):
                self._change(group)
                group.forget(limit)
                if group.steps and not group.columns:
                    del self._groups[key]

    def _change(self, group: Group) -> None:
        """Begin a new version. Rows that wait with the group's old columns must go first, others need not."""
        if group.ticks:
            self._seal()
        if self._dictionary is not None:
            self.version += 1
            self._dictionary = None

    def dictionary(self) -> pb.Dictionary:
        """Return the dictionary of the current version; from here on a change makes a new one."""
        if self._dictionary is None:
            self._dictionary = pb.Dictionary(version=self.version)
            for group in self._groups.values():
                self._dictionary.groups.append(
                    pb.Group(
                        id=group.number,
                        period_ns=int(group.period_s * 1e9),
                        steps=group.steps,
                        series=[pb.Series(metric=metric, entity=entity) for metric, entity in group.columns],
                    )
                )
        return self._dictionary

    def _seal(self) -> None:
        blocks = []
        for group in self._groups.values():
            if group.ticks:
                blocks.append(pb.Block(group=group.number, tick_ns=group.ticks, values=b"".join(group.rows)))
                group.ticks, group.rows = [], []
        if blocks:
            known = self.dictionary()
            batch = pb.Batch(dictionary_version=known.version, blocks=blocks, crc=blocks_crc(blocks))
            setattr(batch, "class", pb.CLASS_METRICS)
            self._sealed.append(Sealed(batch, known, self._samples))
        self._samples = self._bytes = 0

    def flush(self) -> list[Sealed]:
        """Seal what is there and return every sealed batch, oldest first."""
        self._seal()
        sealed, self._sealed = self._sealed, []
        return sealed
