"""Numbered reports of driver and switch (Xid, SXid): bursts, repeats, stickiness, cancellation, patterns.

A report is an instant; what holds is "was reported within its sticky time". The driver's event and its kernel
line are one signal with two origins. Application Xids are recorded and notify nobody, unless they keep coming
back on one unit of one GPU while its neighbours are quiet: then a person should look at the hardware.
Blind spot: a job with one GPU a node looks like one GPU's fault when its code is wrong.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from gpuvigil_detectors.base import Evidence, FactEvent, Finding, Severity
from gpuvigil_detectors.catalogue import CodeRow, CodeTable
from gpuvigil_detectors.variants import variant_of

_SECOND: Final = 1_000_000_000
_REPORTS_MAX: Final = 100_000
_REPORTS_OF_NODE_MAX: Final = 500
_REMEMBERED: Final = 64
_COUNT_MAX: Final = 1_000_000


_Key = tuple[str, str, bool]
"""(entity, number and variant, whether it is a drill)."""


@dataclass(slots=True)
class Report:
    """What is known of one number on one entity; drill and fault are two reports, and so are variants.

    name: the number, and the variant's name where there is one.
    """

    row: CodeRow
    name: str
    node: str
    entity: str
    code: int
    synthetic: bool
    first_ns: int
    last_ns: int
    count: int = 0
    origins: set[str] = field(default_factory=set)
    bursts: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    units: dict[str, deque[int]] = field(default_factory=dict)
    signal_ns: int = 0
    signal_origins: set[str] = field(default_factory=set)
    word: str = ""
    text: str = ""
    said: tuple[tuple[object, ...], Finding] | None = None


class CodeReports:
    """All reports of one table over the fleet. `label` is the word in sentences: Xid or SXid."""

    def __init__(self, table: CodeTable, label: str) -> None:
        self._table, self._label = table, label
        self._rows = table.by_code()
        self._known: dict[_Key, Report] = {}
        self._order: dict[str, dict[_Key, None]] = {}  # of each node, the quietest first; may name the gone
        self._applications: dict[str, dict[str, deque[int]]] = {}  # node -> GPU -> its bursts
        self._proven: dict[str, int] = {}  # node -> when the test began that it passed last
        self.dropped = 0

    def row(self, code: int) -> CodeRow:
        """The catalogue's row of a number, the row for unknown ones otherwise."""
        return self._rows.get(code, self._table.unknown)

    def _row_of(self, event: FactEvent, entity: str, time_ns: int) -> tuple[CodeRow, str]:
        """Return the row and the report's name. The driver's bare event is what its kernel line says."""
        row, name, reach_ns = (
            self.row(event.code),
            str(event.code),
            int(self._table.default.same_signal_s * _SECOND),
        )
        if not row.variant:
            return row, name
        variant = variant_of(row.variant, event.fields)
        if variant is not None:
            bare = self._known.get((entity, name, event.synthetic))
            if bare is not None and bare.origins == {"driver"} and time_ns - bare.first_ns <= reach_ns:
                del self._known[entity, name, event.synthetic]
            return row.varied(variant), f"{name}_{variant.name}"
        for kind in row.variant if event.origin == "driver" else ():
            told = self._known.get((entity, f"{name}_{kind.name}", event.synthetic))
            if told is not None and abs(time_ns - told.last_ns) <= reach_ns:
                return told.row, told.name
        return row, name

    def take(self, event: FactEvent, now_ns: int) -> None:
        """Record one event at its own time, never later than now."""
        time_ns, entity = min(event.time_ns, now_ns), f"{event.node}/{event.entity}"
        row, name = self._row_of(event, entity, time_ns)
        for code in row.cancels:
            cancelled = self._known.get((entity, str(code), event.synthetic))
            if cancelled is not None and cancelled.last_ns <= time_ns:
                del self._known[entity, str(code), event.synthetic]
        report = self._known.get((entity, name, event.synthetic))
        if report is None:
            quiet = self._order.setdefault(event.node, {})
            while quiet and (len(quiet) >= _REPORTS_OF_NODE_MAX or len(self._known) >= _REPORTS_MAX):
                self._evict(quiet)
            report = Report(row, name, event.node, entity, event.code, event.synthetic, time_ns, time_ns)
            self._known[entity, name, event.synthetic] = report
        quiet = self._order.setdefault(event.node, {})
        quiet.pop((entity, name, event.synthetic), None)
        quiet[entity, name, event.synthetic] = None
        self._add(report, event, time_ns)
        if row.fault_class == "xid_application" and not event.synthetic:
            of_node = self._applications.setdefault(event.node, {})
            if entity in of_node or len(of_node) < _REMEMBERED:
                bursts = of_node.setdefault(entity, deque(maxlen=_REMEMBERED))
                _burst(bursts, time_ns, self._table.default.burst_s)

    def clear(self, entity: str, before_ns: int, *, drill: bool = False) -> None:
        """A GPU came back after a reset, or its node booted (`entity` ends in `/`): only sticky ones stay.

        What is said in a drill ends what was said in a drill.
        """
        gone = [
            key
            for key, report in self._known.items()
            if (key[0] == entity or (entity.endswith("/") and key[0].startswith(entity)))
            and report.row.sticky_s is None
            and report.synthetic >= drill
            and report.last_ns <= before_ns
        ]
        for key in gone:
            del self._known[key]

    def prove(self, node: str, since_ns: int) -> None:
        """The node passed a test under load that began then: what was reported before is over, sticky or not.

        Sticky is what a reset or boot alone does not disprove. Repeats count on.
        """
        self._proven[node] = max(since_ns, self._proven.get(node, 0))

    def _is_over(self, report: Report) -> bool:
        return not report.synthetic and report.last_ns <= self._proven.get(report.node, 0)

    def findings(self, now_ns: int) -> list[Finding]:
        """Return every report that still holds, and hardware patterns; forget what can matter no more."""
        found, forgotten = [], []
        for key, report in self._known.items():
            age_ns = now_ns - report.last_ns
            if age_ns > max(self._sticky_ns(report), int(self._table.default.repeat_window_s * _SECOND)):
                forgotten.append(key)
            elif age_ns <= self._sticky_ns(report) and not self._is_over(report):
                found.append(self._finding(report, now_ns))
            if report.row.pattern and age_ns <= self._table.default.repeat_window_s * _SECOND:
                found += self._pattern(report, now_ns)
        for key in forgotten:
            del self._known[key]
        if forgotten:
            kept = {node: {k: None for k in keys if k in self._known} for node, keys in self._order.items()}
            self._order = {node: keys for node, keys in kept.items() if keys}
        return found

    def _add(self, report: Report, event: FactEvent, time_ns: int) -> None:
        default = self._table.default
        near = abs(time_ns - report.signal_ns) <= default.same_signal_s * _SECOND
        if near and report.signal_origins and event.origin not in report.signal_origins:
            report.signal_origins.add(event.origin)  # the same signal, seen by its other path
        else:
            report.signal_ns, report.signal_origins = time_ns, {event.origin}
            report.count += _count(event)
        unit = (
            f"GPC {event.fields['gpc']} TPC {event.fields.get('tpc', '?')}" if "gpc" in event.fields else ""
        )
        if report.row.pattern and (unit or report.row.pattern == "same_gpu"):
            if unit not in report.units and len(report.units) >= _REMEMBERED:
                report.units.pop(next(iter(report.units)))
            _burst(report.units.setdefault(unit, deque(maxlen=_REMEMBERED)), time_ns, default.burst_s)
        _burst(report.bursts, time_ns, default.burst_s)
        if time_ns - report.last_ns > self._sticky_ns(report) or self._is_over(report):
            report.first_ns = time_ns  # it had lapsed: this is a new occurrence
        report.origins.add(event.origin)
        report.word = event.fields.get("severity", report.word)
        report.text = event.text or report.text
        report.first_ns, report.last_ns = min(report.first_ns, time_ns), max(report.last_ns, time_ns)

    def _sticky_ns(self, report: Report) -> int:
        sticky_s = report.row.sticky_s
        return int((self._table.default.sticky_s if sticky_s is None else sticky_s) * _SECOND)

    def _recent(self, bursts: deque[int], now_ns: int) -> list[int]:
        window_ns = int(self._table.default.repeat_window_s * _SECOND)
        return [start for start in list(bursts)[::2] if now_ns - start <= window_ns]

    def severity(self, report: Report, recent: int) -> tuple[Severity, bool]:
        """Severity by row, by the line's own word, by `recent` bursts; and whether it repeats."""
        severity = report.row.severity
        if report.row.by_word and report.word:
            severity = "critical" if report.word == "Fatal" else "warning"
        repeats = recent >= self._table.default.repeat_bursts
        if repeats and severity == "warning" and report.row is not self._table.unknown:
            severity = "critical"
        return severity, repeats

    def _finding(self, report: Report, now_ns: int) -> Finding:
        """The report in words; the same object as long as nothing about it changed."""
        settled = now_ns - report.first_ns >= report.row.settle_s * _SECOND
        recent = len(self._recent(report.bursts, now_ns))
        key = (settled, recent, report.count, report.first_ns, report.last_ns, len(report.origins),
               report.word, report.text)  # fmt: skip
        if report.said is None or report.said[0] != key:
            report.said = key, self._worded(report, recent, settled)
        return report.said[1]

    def _worded(self, report: Report, recent: int, settled: bool) -> Finding:
        row = report.row
        severity, repeats = self.severity(report, recent)
        times = f", {report.count} times" if report.count > 1 else ""
        again = f" in {recent} bursts within 24 h" if repeats else ""
        sentence = f"{self._label} {report.code}: {row.meaning}{times}{again}; {row.action}"
        facts = (
            ("code", str(report.code)), ("area", row.area), ("action", row.action),
            ("investigate", row.investigate), ("fatal", "yes" if row.fatal else "no"),
            ("exempt", " ".join(row.exempt)), ("bursts_24h", str(recent)),
            ("line", report.text[:200]),
        )  # fmt: skip
        return Finding(
            detector="rules", rule=f"{self._label.lower()}_{report.name}", entity=report.entity,
            fault_class=row.fault_class, severity=severity, start_ns=report.first_ns, end_ns=report.last_ns,
            sentence=sentence, origin="+".join(sorted(report.origins)), notify=row.notify and settled,
            synthetic=report.synthetic,
            evidence=Evidence(
                observed=float(report.count), unit="reports", since_ns=report.first_ns, facts=facts
            ),
        )  # fmt: skip

    def _pattern(self, report: Report, now_ns: int) -> list[Finding]:
        """An application Xid that keeps coming back on one unit, each time without any neighbour."""
        found = []
        for unit, bursts in report.units.items():
            alone = [start for start in self._recent(bursts, now_ns) if self._alone(report, start)]
            if len(alone) < self._table.default.repeat_bursts:
                continue
            where = f"this GPU, {unit}" if unit else "this GPU"
            sentence = (
                f"{self._label} {report.code} ({report.row.meaning}) came back in {len(alone)} bursts "
                f"within 24 h on {where} alone: suspect the hardware; a person should run diagnostics"
            )
            found.append(Finding(
                detector="rules", rule=f"{self._label.lower()}_{report.code}_pattern", entity=report.entity,
                fault_class="gpu_error", severity="warning", start_ns=alone[0], end_ns=report.last_ns,
                sentence=sentence, origin="+".join(sorted(report.origins)), synthetic=report.synthetic,
                evidence=Evidence(observed=float(len(alone)), unit="bursts", since_ns=alone[0],
                                  facts=(("code", str(report.code)), ("unit", unit))),
            ))  # fmt: skip
            break
        return found

    def _alone(self, report: Report, start_ns: int) -> bool:
        reach = self._table.default.burst_s * _SECOND
        others = (b for e, b in self._applications.get(report.node, {}).items() if e != report.entity)
        pairs = (
            pair for bursts in others for pair in zip(list(bursts)[::2], list(bursts)[1::2], strict=True)
        )
        return not any(start - reach <= start_ns <= last + reach for start, last in pairs)

    def _evict(self, quiet: dict[_Key, None]) -> None:
        """Forget the node's quietest report: made-up numbers must not cost other nodes theirs."""
        oldest = next(iter(quiet))
        del quiet[oldest]
        self.dropped += self._known.pop(oldest, None) is not None


def _burst(bursts: deque[int], time_ns: int, burst_s: float) -> None:
    """Keep (start, last) of each burst as two entries; a repeat within `burst_s` is of the newest one."""
    if bursts and abs(time_ns - bursts[-1]) <= burst_s * _SECOND:
        bursts[-1] = max(bursts[-1], time_ns)
    elif not bursts or time_ns > bursts[-1]:
        bursts.extend((time_ns, time_ns))


def _count(event: FactEvent) -> int:
    """How many lines an event stands for; the agent coalesces storms and says so."""
    text = event.fields.get("count", "1")
    return min(int(text), _COUNT_MAX) if text.isdecimal() and len(text) <= len(str(_COUNT_MAX)) else 1
