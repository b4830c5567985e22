"""Families as Prometheus text, cheap enough for a scrape a second: a series' head is escaped once and kept.

Source: the text format 0.0.4. Escaping and label order are prometheus_client's own: the head of a line is cut
from what its `generate_latest` says about that one series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_HEADS_MAX: Final = 20_000
Values = tuple[str, ...]
_number: Callable[[float], str] = floatToGoString


@dataclass(slots=True)
class Family:
    """One metric; `name` without `_total`, rows in the order of `labels`."""

    name: str
    kind: Literal["gauge", "counter"]
    text: str
    labels: Values = ()
    rows: list[tuple[Values, float]] = field(default_factory=list)

    def add(self, values: Values, number: float) -> None:
        """Add one series."""
        self.rows.append((values, number))


class Renderer:
    """Keeps the heads of lines; bounded, for entities come and go."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, Values], str] = {}
        self._tops: dict[str, str] = {}

    def render(self, families: Iterable[Family]) -> bytes:
        """Return the whole text."""
        lines: list[str] = []
        for family in families:
            name = family.name
            lines.append(self._tops.get(name) or self._top(family))
            for values, number in family.rows:
                head = self._heads.get((name, values)) or self._head(family, values)
                lines.append(f"{head}{_number(number)}\n")
        return "".join(lines).encode()

    def _top(self, family: Family) -> str:
        top, _ = _said(family, ("",) * len(family.labels))
        self._tops[family.name] = top
        return top

    def _head(self, family: Family, values: Values) -> str:
        if len(self._heads) >= _HEADS_MAX:
            self._heads.clear()
        _, head = _said(family, values)
        self._heads[family.name, values] = head
        return head


class _Single(Collector):
    def __init__(self, family: GaugeMetricFamily | CounterMetricFamily) -> None:
        self._family = family

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        return [self._family]


def _said(family: Family, values: Values) -> tuple[str, str]:
    """Return HELP and TYPE, and the series up to its value, as prometheus_client writes them."""
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    one = kind(family.name, family.text, labels=family.labels)
    one.add_metric(values, 0.0)
    registry = CollectorRegistry()
    registry.register(_Single(one))
    *top, line = generate_latest(registry).decode().splitlines(keepends=True)
    return "".join(top), line.removesuffix("0.0\n")
