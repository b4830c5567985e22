"""A node's series dictionary, checked: which columns of a batch are what, and within which range.

A metric that this collector's catalogue does not have (a newer agent's) is recorded but gets no row in the
ring; such series are counted. Names that no agent of ours would send refuse the whole dictionary.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from gpuvigil_collector.ingest.refusal import RefusedError, show
from gpuvigil_collector.ingest.ring import FAST, SLOW
from gpuvigil_protos.catalog import CATALOG
from gpuvigil_protos.codec import GROUPS_PER_NODE_MAX
from gpuvigil_protos.entity import is_valid_entity, job_and_rank_of, kind_of
from gpuvigil_protos.v1 import stream_pb2 as pb

_METRIC_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,99}\Z")
_FAST_MAX_NS: Final = 1_000_000_000
_PERIOD_MAX_NS: Final = 86_400 * 1_000_000_000


@dataclass(slots=True, kw_only=True)
class Columns:
    """One group: `width` columns on the wire, of which `known` (int32, None = all) have rows in `plane`.

    low, high: float32 [known]. rows is filled in when the ring has given them. steps: the rank entity whose
    steps the rows are, which have no place in the ring; "" for readings of the grid.
    """

    width: int
    plane: int
    known: NDArray[np.int32] | None
    series: list[tuple[str, str]]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    steps: str = ""
    rows: NDArray[np.int32] | slice = field(default_factory=lambda: slice(0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dictionary:
    """A dictionary that batches may refer to. `text` is its canonical JSON, `digest` that text's SHA-256."""

    version: int
    digest: str
    text: bytes
    groups: dict[int, Columns]
    unknown: int


def parse(message: pb.Dictionary, series_max: int) -> Dictionary:
    """Check a dictionary. Raises RefusedError: too_many_series, bad_text, unknown_series."""
    total = sum(len(group.series) for group in message.groups)
    if total > series_max:
        raise RefusedError("too_many_series", f"series: expected at most {series_max}, got {total}")
    if len(message.groups) > GROUPS_PER_NODE_MAX:
        raise RefusedError(
            "too_many_series", f"groups: expected at most {GROUPS_PER_NODE_MAX}, got {len(message.groups)}"
        )
    seen: set[tuple[str, str]] = set()
    groups: dict[int, Columns] = {}
    for group in message.groups:
        if group.id in groups or not 0 < group.period_ns <= _PERIOD_MAX_NS:
            raise RefusedError(
                "unknown_series", f"group {group.id}: expected one of its id, period up to a day"
            )
        groups[group.id] = _columns(group, seen)
    text = _canonical(message)
    return Dictionary(
        version=message.version,
        digest=hashlib.sha256(text).hexdigest(),
        text=text,
        groups=groups,
        unknown=sum(columns.width - len(columns.series) for columns in groups.values()),
    )


def _columns(group: pb.Group, seen: set[tuple[str, str]]) -> Columns:
    known, names = [], []
    for at, series in enumerate(group.series):
        _check_names(series)
        metric = CATALOG.get(series.metric)
        name = (series.metric, series.entity)
        if metric is None or metric.entity_kind != kind_of(series.entity) or name in seen:
            continue
        seen.add(name)
        known.append(at)
        names.append(name)
    return Columns(
        steps=_rank_of(group) if group.steps else "",
        width=len(group.series),
        plane=FAST if group.period_ns <= _FAST_MAX_NS else SLOW,
        known=None if len(known) == len(group.series) else np.array(known, np.int32),
        series=names,
        low=np.array([CATALOG[metric].low for metric, _ in names], np.float32),
        high=np.array([CATALOG[metric].high for metric, _ in names], np.float32),
    )


def _rank_of(group: pb.Group) -> str:
    entities: set[str] = {series.entity for series in group.series}
    if len(entities) != 1 or job_and_rank_of(min(entities)) is None:
        got = show(", ".join(sorted(entities))) if entities else "nothing"
        raise RefusedError("bad_text", f"steps: expected the series of one rank, got those of {got}")
    return min(entities)


def _check_names(series: pb.Series) -> None:
    if not _METRIC_NAME.match(series.metric):
        raise RefusedError("bad_text", f"metric: expected a catalogue name, got {show(series.metric)}")
    if not is_valid_entity(series.entity):
        raise RefusedError(
            "bad_text", f"entity: expected kind:id in printable ASCII, got {show(series.entity)}"
        )


def _canonical(message: pb.Dictionary) -> bytes:
    groups = [
        {"id": g.id, "period_ns": g.period_ns, "series": [[s.metric, s.entity] for s in g.series]}
        | ({"steps": True} if g.steps else {})
        for g in message.groups
    ]
    return msgspec.json.encode({"groups": groups})
