"""Rules: the vendor's and the field's catalogue of facts, applied to events and readings.

Sources: data/*.toml, from NVIDIA's Xid and SXid catalogues, NVML, and open systems' rules.
Blind spot: what no catalogue names. A GPU that is silently slow breaks no rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gpuvigil_detectors import catalogue
from gpuvigil_detectors.base import Evidence, FactEvent, Finding, Snapshot
from gpuvigil_detectors.cached import Cached
from gpuvigil_detectors.code_reports import CodeReports
from gpuvigil_detectors.metric_rules import MetricRules
from gpuvigil_detectors.recovery import RECOVERY_XID, Recovery
from gpuvigil_protos.entity import is_valid_entity

_SECOND: Final = 1_000_000_000
_LINES_MAX: Final = 50_000


@dataclass(slots=True)
class _Line:
    """A kernel line that still holds."""

    row: catalogue.KernelLine
    first_ns: int
    last_ns: int
    count: int
    text: str
    synthetic: bool


class Rules:
    """Every rule of the catalogue over one snapshot: Xids, SXids, kernel lines, recovery action, readings."""

    name = "rules"

    def __init__(self) -> None:
        xids = catalogue.load("xid", catalogue.CodeTable)
        self._xids = CodeReports(xids, "Xid")
        self._beside = {row.beside_rule for row in xids.by_code().values() if row.beside_rule}
        self._sxids = CodeReports(catalogue.load("sxid", catalogue.CodeTable), "SXid")
        self._recovery = Recovery(catalogue.load("recovery", catalogue.RecoveryTable))
        self._metrics = MetricRules()
        lines = catalogue.load("kernel", catalogue.KernelLines).line
        self._line_rows = {row.rule: row for row in lines}
        self._lines: dict[tuple[str, str, bool], _Line] = {}  # by entity, rule, and whether it is a drill
        self._boots: dict[str, str] = {}

    def remember(self, findings: Iterable[Finding]) -> None:
        """Take back the findings of incidents that were open when an earlier run ended."""
        self._metrics.remember(findings)

    def tick(self, snapshot: Snapshot) -> list[Finding]:
        """Return everything that holds now."""
        snapshot = Cached(snapshot)
        self._remember(snapshot)
        for node, fact in snapshot.nodes.items():
            self._watch_boot(node, fact.boot_id, snapshot.now_ns)
        for event in snapshot.events:
            if not event.judged:
                self._take(event, snapshot.now_ns)
        self._recovery.read(snapshot)
        readings = self._metrics.tick(snapshot)
        codes = self._with_readings(self._xids.findings(snapshot.now_ns), readings)
        codes += self._sxids.findings(snapshot.now_ns)
        return self._recovery.apply(codes + readings, snapshot.now_ns) + self._held_lines(snapshot.now_ns)

    @property
    def dropped(self) -> int:
        """Reports forgotten because too many different ones came."""
        return self._xids.dropped + self._sxids.dropped

    def _remember(self, snapshot: Snapshot) -> None:
        """Rebuild what an earlier run knew, boots in between included.

        The recovery action is left out: readings end it, which no event tells, and bring it back in a minute.
        """
        seen: set[tuple[str, str]] = set()
        for event in snapshot.events:
            if not event.judged:
                continue
            if (event.node, event.boot_id) not in seen:  # an old boot's backlog is no boot
                seen.add((event.node, event.boot_id))
                self._watch_boot(event.node, event.boot_id, min(event.time_ns, snapshot.now_ns))
            self._take(event, snapshot.now_ns)

    def _take(self, event: FactEvent, now_ns: int) -> None:
        if event.kind == "xid":
            if event.code == RECOVERY_XID and not event.judged:
                self._recovery.take(event, now_ns)
            self._xids.take(event, now_ns)
        elif event.kind == "sxid":
            self._sxids.take(event, now_ns)
        elif event.kind == "recovery_action" and not event.judged:
            self._recovery.take(event, now_ns)
        elif event.kind == "gpu_returned":
            entity = f"{event.node}/{event.entity}"
            self._xids.clear(entity, min(event.time_ns, now_ns), drill=event.synthetic)
            self._recovery.clear(entity, drill=event.synthetic)
        elif event.kind == "proven":
            self._xids.prove(event.node, min(event.time_ns, now_ns))
            self._sxids.prove(event.node, min(event.time_ns, now_ns))
        elif event.kind == "kernel":
            self._take_line(event, now_ns)

    def _watch_boot(self, node: str, boot_id: str, now_ns: int) -> None:
        """A node that booted has reset its GPUs: what is not sticky is over. A restarted agent is no boot."""
        boot = boot_id.rpartition(".")[0] or boot_id  # <kernel boot id>.<generation of the agent's spool>
        before = self._boots.get(node)
        self._boots[node] = boot
        if before is not None and before != boot:
            self._xids.clear(f"{node}/", now_ns)

    def _with_readings(self, codes: list[Finding], readings: list[Finding]) -> list[Finding]:
        """A report whose class depends on a reading takes it once the reading is there."""
        standing = {(finding.rule, finding.entity) for finding in readings if finding.rule in self._beside}
        if not standing:
            return codes
        out = []
        for finding in codes:
            code = dict(finding.evidence.facts).get("code", "0")
            row = self._xids.row(int(code))
            plain = finding.rule == f"xid_{code}" and bool(row.beside_rule)
            if plain and (row.beside_rule, finding.entity) in standing:
                finding = replace(finding, fault_class=row.beside_class, notify=row.notify)  # noqa: PLW2901
            out.append(finding)
        return out

    def _take_line(self, event: FactEvent, now_ns: int) -> None:
        row = self._line_rows.get(event.fields.get("rule", ""))
        if row is None:
            return
        device = event.fields.get("device", "")
        blamed = f"disk:{device}" if row.blame == "device" and device else event.entity
        blamed = blamed if is_valid_entity(blamed) else event.entity
        key, time_ns = (f"{event.node}/{blamed}", row.rule, event.synthetic), min(event.time_ns, now_ns)
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= _LINES_MAX:
                del self._lines[next(iter(self._lines))]
            line = self._lines[key] = _Line(row, time_ns, time_ns, 0, event.text, event.synthetic)
        line.count += 1
        line.last_ns, line.text = max(line.last_ns, time_ns), event.text

    def _held_lines(self, now_ns: int) -> list[Finding]:
        held = {k: v for k, v in self._lines.items() if now_ns - v.last_ns <= v.row.sticky_s * _SECOND}
        self._lines = held
        return [_line_finding(entity, line) for (entity, *_), line in held.items()]


def _line_finding(entity: str, line: _Line) -> Finding:
    times = f", {line.count} lines" if line.count > 1 else ""
    evidence = Evidence(
        observed=float(line.count), unit="lines", since_ns=line.first_ns, facts=(("line", line.text[:200]),)
    )
    return Finding(
        detector="rules", rule=f"kernel_{line.row.rule}", entity=entity, fault_class=line.row.fault_class,
        severity=line.row.severity, start_ns=line.first_ns, end_ns=line.last_ns,
        sentence=f"kernel: {line.row.sentence}{times}", origin="kernel_log", evidence=evidence,
        notify=line.row.notify, synthetic=line.synthetic,
    )  # fmt: skip
