"""What every sampler yields and may raise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from gpuvigil_protos.catalog import Metric


class Sample(NamedTuple):
    """One reading. It has no time: the tick gives one time to all its samples.

    A counter's value is its raw total; the schedule turns it into a rate where the catalogue says so.
    """

    metric: Metric
    entity: str
    value: float


class Sampler(Protocol):
    """One concern of the node, read with one period.

    `sample` yields what is there and leaves out what is not: absence is never 0 and never the old value.
    Operating faults raise SourceAbsentError (the schedule counts them and shows the sampler as down).
    """

    name: str
    period_s: float

    def sample(self) -> Iterator[Sample]:
        """Read once."""
        ...


class SourceAbsentError(Exception):
    """The source of a sampler is not there on this node: leave its series out, try again later."""
