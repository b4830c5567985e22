"""Alertmanager's silences as the safety kernel wants them: which nodes and incidents are silenced, and why.

A silence covers a node when it covers every alert that the node could have: matchers about the node or about
labels that all our alerts carry. One that names an alert, a class or an entity covers that incident alone.
Matchers are evaluated as Alertmanager does: RE2, anchored, a missing label is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import re2

from gpuvigil_collector.alerting.alert import Key
from gpuvigil_collector.alerting.client import Matcher, SilenceRow
from gpuvigil_collector.alerting.names import ROWS
from gpuvigil_detectors.base import SEVERITIES
from gpuvigil_protos.fault_classes import FAULT_CLASSES
from gpuvigil_protos.text import printable

_PATTERN_MAX: Final = 4096
_MEMORY_MAX: Final = 1 << 20
_REASON_MAX: Final = 200
# labels with few values: a silence that matches all of them covers every alert
_DOMAINS: Final[dict[str, tuple[str, ...]]] = {
    "alertname": tuple(row.name for row in ROWS),
    "severity": tuple(SEVERITIES),
    "class": tuple(FAULT_CLASSES),
    "scope": tuple({scope for scopes, _ in FAULT_CLASSES.values() for scope in scopes}),
}
_ANYTHING: Final = ("", "any", "gpu:GPU-5d1b", "0f/1")  # of labels that have any value


@dataclass(frozen=True, slots=True, kw_only=True)
class Silences:
    """What is silenced now: node -> reason, incident id -> reason.

    read_ns: when Alertmanager was last read, 0 for never. fault: why this is not to be relied on, "" when it
    is: where Alertmanagers are configured, a caller that acts treats a fault as unknown, and unknown denies.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    incidents: Mapping[str, str] = field(default_factory=dict)
    read_ns: int = 0
    fault: str = ""


class Condition:
    """One matcher, compiled. A pattern that RE2 cannot read matches everything: rather silent than wrong."""

    def __init__(self, row: Matcher) -> None:
        self.name, self._value, self._equal = row.name, row.value, row.is_equal
        self._pattern = _compile(row.value) if row.is_regex else None
        self.unreadable = row.is_regex and self._pattern is None

    def matches(self, value: str) -> bool:
        """Tell whether a label's value satisfies it."""
        if self.unreadable:
            return True
        found = self._pattern.fullmatch(value) is not None if self._pattern else value == self._value
        return found is self._equal


def _compile(pattern: str) -> re2._Regexp | None:
    options = re2.Options()
    options.log_errors, options.max_mem = False, _MEMORY_MAX
    try:
        return re2.compile(pattern, options) if len(pattern) <= _PATTERN_MAX else None
    except re2.error:
        return None


@dataclass(frozen=True, slots=True)
class Silence:
    """One silence that has not expired."""

    starts_ns: int
    ends_ns: int
    reason: str
    conditions: tuple[Condition, ...]

    def covers_alert(self, labels: Mapping[str, str]) -> bool:
        """Tell whether an alert with these labels is silenced."""
        return all(condition.matches(labels.get(condition.name, "")) for condition in self.conditions)

    def covers_node(self, node: str, extra: Mapping[str, str]) -> bool:
        """Tell whether every alert that this node could have is silenced; extra: labels of all alerts."""
        return all(
            all(condition.matches(value) for value in _values(condition.name, node, extra))
            for condition in self.conditions
        )


def _values(label: str, node: str, extra: Mapping[str, str]) -> Iterable[str]:
    if label == "node":
        return (node,)
    if label in extra:
        return (extra[label],)
    if label == "synthetic":  # of drills alone: no alert about the node's real state carries it
        return ("",)
    return _DOMAINS.get(label, _ANYTHING if label in ("uuid", "entity", "fingerprint") else ("",))


def read_rows(rows: Iterable[SilenceRow], now_ns: int) -> list[Silence]:
    """Return the silences that hold now or later. One whose times cannot be read is taken to hold."""
    found = []
    for row in rows:
        starts_ns, ends_ns = _ns(row.starts_at, 0), _ns(row.ends_at, 1 << 62)
        if row.status.get("state") == "expired" or ends_ns <= now_ns or not row.matchers:
            continue
        conditions = tuple(Condition(matcher) for matcher in row.matchers)
        found.append(Silence(starts_ns, ends_ns, _reason(row, conditions), conditions))
    return found


def _ns(text: str, otherwise: int) -> int:
    try:
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1e9)
    except (ValueError, OverflowError):
        return otherwise


def _reason(row: SilenceRow, conditions: tuple[Condition, ...]) -> str:
    text = f"silenced in Alertmanager by {row.created_by or 'nobody named'}: {row.comment or 'no comment'}"
    if any(condition.unreadable for condition in conditions):
        text += " (a pattern of it cannot be read and counts as matching)"
    return printable(text[:_REASON_MAX])


class Cover:
    """One reading of all replicas' silences, with what it covers remembered. Any one thread at a time."""

    def __init__(self, silences: list[Silence], extra: Mapping[str, str]) -> None:
        self.count = len(silences)
        self._silences, self._extra = silences, extra
        self._nodes: dict[str, tuple[Silence, ...]] = {}
        self._alerts: dict[Key, tuple[Silence, ...]] = {}

    def node(self, node: str, now_ns: int) -> str:
        """Return why a node is silenced now, "" when it is not."""
        if node not in self._nodes:
            found = (silence for silence in self._silences if silence.covers_node(node, self._extra))
            self._nodes[node] = tuple(found)
        return _holding(self._nodes[node], now_ns)

    def alert(self, key: Key, now_ns: int) -> str:
        """Return why an alert is silenced now, "" when it is not."""
        if key not in self._alerts:
            labels = dict(key)
            self._alerts[key] = tuple(one for one in self._silences if one.covers_alert(labels))
        return _holding(self._alerts[key], now_ns)


def _holding(silences: tuple[Silence, ...], now_ns: int) -> str:
    return next((one.reason for one in silences if one.starts_ns <= now_ns < one.ends_ns), "")
