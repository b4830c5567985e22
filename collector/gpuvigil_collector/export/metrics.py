"""The collector's metrics endpoint: the fleet in fewer than 20,000 series, whatever its size.

Rendered from the last tick's View on request, outside the tick. Sums and counts for the fleet; a series an
entity only for open incidents (100 at most) and Xids (1,000 at most). Message text is never a label.
"""

from __future__ import annotations

import re
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gpuvigil_collector.export.counts import Counts
from gpuvigil_collector.export.jobs import families as job_families
from gpuvigil_collector.export.repairs import families as repair_families
from gpuvigil_collector.export.view import View, health_detail
from gpuvigil_collector.goodput.report import families as goodput_families
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.ingest import ack_latency
from gpuvigil_collector.topology import Topology
from gpuvigil_detectors.base import SEVERITIES
from gpuvigil_protos import entity as names

OPEN_SERIES_MAX: Final = 100
_REASONS_MAX: Final = 50
_LEDGER_STATES: Final = ("received", "durable")

Ledger = list[dict[str, object]]


class FleetCollector(Collector):
    """Yields every family of the page; what it reads is immutable or only counted up."""

    def __init__(
        self, version: str, view: Callable[[], View], counts: Counts, ledger: Callable[[], Ledger],
        ingest: Callable[[], dict[str, float]], faults: Callable[[], list[str]],
    ) -> None:  # fmt: skip
        self._version, self._view, self._counts = version, view, counts
        self._ledger, self._ingest, self._faults = ledger, ingest, faults

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead: registering must not render the page."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Render all families of this instant."""
        view, ledger = self._view(), self._ledger()
        build = GaugeMetricFamily("gpuvigil_build_info", "Version of the collector.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        yield _gauge(
            "gpuvigil_collector_healthy", "0 while /api/v1/health says degraded.",
            float(not health_detail(view, ledger, self._faults())),
        )  # fmt: skip
        yield from _own_state(view)
        yield from _losses(view)
        yield from _fleet(view)
        yield from self._findings()
        yield from _incidents(view)
        yield from job_families(view.jobs)
        yield from goodput_families(view.goodput)
        yield from repair_families(view.repair)
        yield from self._xids()
        yield from _ledger_families(ledger)
        yield from _ingest_families(self._ingest())
        yield from self._counts.tick_seconds.collect()
        yield from self._counts.stage_seconds.collect()

    def _findings(self) -> Iterator[Metric]:
        now = GaugeMetricFamily(
            "gpuvigil_findings_active", "Findings that hold now.", labels=["detector", "class", "severity"]
        )
        for labels, count in sorted(self._counts.findings_now.items()):
            now.add_metric(list(labels), count)
        yield now
        yield from self._counts.findings_total.collect()
        yield from self._counts.incident_changes_total.collect()

    def _xids(self) -> Iterator[Metric]:
        labels = ["node", "gpu", "uuid", "xid"]
        total = CounterMetricFamily("gpuvigil_xid", "Xids seen, by GPU and code.", labels=labels)
        last = GaugeMetricFamily(
            "gpuvigil_last_xid_timestamp_seconds", "When this Xid was last seen.", labels=labels
        )
        for key, count in list(self._counts.xids.items()):
            values = [key.node, key.gpu, key.uuid, str(key.xid)]
            total.add_metric(values, count.total)
            last.add_metric(values, count.last_ns / 1e9)
        yield total
        yield last
        yield _counter(
            "gpuvigil_xid_series_overflow", "Xid series that made room for newer ones.",
            self._counts.xids_overflow,
        )  # fmt: skip


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """Put the page together: the fleet's families, others' and this process's own CPU and memory."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """Render the page in the text format 0.0.4."""
    return generate_latest(registry)


def _own_state(view: View) -> Iterator[Metric]:
    yield _counter("gpuvigil_ticks", "Ticks of the brain.", view.ticks)
    yield _gauge(
        "gpuvigil_last_tick_timestamp_seconds", "When the brain last ended a tick.", view.now_ns / 1e9
    )
    yield _gauge(
        "gpuvigil_learning", "1 while statistical findings are learned and notify nobody.",
        float(view.learning_until_ns is not None),
    )  # fmt: skip
    if view.learning_until_ns is not None:
        yield _gauge(
            "gpuvigil_learning_until_timestamp_seconds", "When learning ends.", view.learning_until_ns / 1e9
        )
    yield _counter("gpuvigil_journal_entries", "Entries written since the start.", view.journal_entries)
    yield _counter("gpuvigil_journal_failures", "Writes to the journal that failed.", view.journal_failures)
    yield _gauge("gpuvigil_journal_healthy", "0 while it is not on disk.", float(not view.journal_fault))
    yield _gauge("gpuvigil_journal_sequence", "Number of the journal's newest entry.", view.journal_sequence)
    yield _gauge(
        "gpuvigil_journal_head", "First 13 hexadecimal digits of the newest entry's hash, as a number.",
        float(int(view.journal_head[:13] or "0", 16)),  # 52 bits: a float holds them exactly
    )  # fmt: skip


def _losses(view: View) -> Iterator[Metric]:
    """What /api/v1/health calls lately: a rule over it fires for the first loss, whatever its labels."""
    recent = GaugeMetricFamily("gpuvigil_losses_recent", "Losses of the last 10 minutes.", labels=["kind"])
    recent.add_metric(["gap_sequences"], view.lately.gaps)
    recent.add_metric(["messages_refused"], view.lately.refused)
    recent.add_metric(["findings_not_opened"], view.lately.not_opened)
    yield recent


def _fleet(view: View) -> Iterator[Metric]:
    nodes = GaugeMetricFamily("gpuvigil_nodes", "Registered nodes by state.", labels=["state"])
    up = sum(fact.connected for fact in view.nodes.values())
    nodes.add_metric(["up"], up)
    nodes.add_metric(["silent"], len(view.nodes) - up)
    yield nodes
    gpus = GaugeMetricFamily("gpuvigil_gpus", "GPUs of registered nodes by state.", labels=["state"])
    unseen = {(fact.node, gpu.uuid) for fact in view.nodes.values() for gpu in fact.gpus if not gpu.seen}
    states = Tally((view.gpu_states() | dict.fromkeys(unseen, "lost")).values())
    gpus.add_metric(["ok"], max(0, Topology(view.nodes).gpus_total() - states.total()))
    for state in ("suspect", "lost"):
        gpus.add_metric([state], states[state])
    yield gpus


def _incidents(view: View) -> Iterator[Metric]:
    by_class = GaugeMetricFamily(
        "gpuvigil_incidents_open", "Open incidents by class and severity.", labels=["class", "severity"]
    )
    tally = Tally((incident.fault_class, incident.severity) for incident in view.open.values())
    for labels, count in sorted(tally.items()):
        by_class.add_metric(list(labels), count)
    yield by_class
    yield _counter("gpuvigil_incidents_not_opened", "Findings too many to open an incident.", view.not_opened)
    yield _gauge(
        "gpuvigil_gpu_at_stake_seconds", "Time of all GPUs in the scope of open incidents, so far.",
        3600 * sum(incident.gpu_hours(view.now_ns) for incident in view.open.values()),
    )  # fmt: skip
    each = GaugeMetricFamily(
        "gpuvigil_incident_open", "Open incidents that may alert, by what they are about; the gravest 100.",
        labels=["class", "severity", "scope", "node", "gpu", "uuid", "entity", "fingerprint", "incident",
                "synthetic"],
    )  # fmt: skip
    shown = sorted(view.alerting(), key=_gravest_first)[:OPEN_SERIES_MAX]
    for labels_of_one in sorted({_incident_labels(incident, view) for incident in shown}):
        each.add_metric(labels_of_one, 1)
    yield each


def _gravest_first(incident: Incident) -> tuple[int, int, str]:
    return -SEVERITIES.index(incident.severity), incident.opened_ns, incident.id


def _incident_labels(incident: Incident, view: View) -> tuple[str, ...]:
    local = incident.target.partition("/")[2]
    uuid = names.gpu_uuid_of(local) or ""
    index = Topology(view.nodes).gpu_index(incident.node, uuid) if uuid else None
    gpu = "" if index is None else str(index)
    drill = "true" if incident.synthetic else ""  # an empty label is none to Prometheus
    what = (incident.fault_class, incident.severity, incident.scope, incident.node, gpu, uuid, local)
    return (*what, incident.fingerprint, incident.id, drill)


def _ledger_families(ledger: Ledger) -> Iterator[Metric]:
    """Fleet-wide sums by delivery class: never a series a node."""
    state = GaugeMetricFamily(
        "gpuvigil_ledger_sequences", "Sum of the watermarks over nodes.", labels=["class", "state"]
    )
    duplicates = CounterMetricFamily("gpuvigil_ledger_duplicates", "Sequences seen twice.", labels=["class"])
    gaps = CounterMetricFamily("gpuvigil_ledger_gap_sequences", "Sequences lost for good.", labels=["class"])
    refused = CounterMetricFamily("gpuvigil_ledger_refused", "Messages refused.", labels=["class", "reason"])
    for name in sorted({str(row["class"]) for row in ledger}):
        rows = [row for row in ledger if row["class"] == name]
        for column in _LEDGER_STATES:
            state.add_metric([name, column], _total(rows, column))
        duplicates.add_metric([name], _total(rows, "duplicates"))
        gaps.add_metric([name], _total(rows, "gap_sequences"))
        for reason, count in sorted(_refusals(rows).most_common(_REASONS_MAX)):
            refused.add_metric([name, reason], count)
    yield from (state, duplicates, gaps, refused)


def _total(rows: Ledger, column: str) -> int:
    return sum(value for row in rows if isinstance(value := row.get(column), int))


def _refusals(rows: Ledger) -> Tally[str]:
    reasons: Tally[str] = Tally()
    for row in rows:
        refused = row.get("refused")
        if isinstance(refused, dict):
            reasons.update(refused)
    return reasons


def _ingest_families(counters: dict[str, float]) -> Iterator[Metric]:
    """Show what the ingest workers count, under their own names; `name:word` is `name` with that reason."""
    bounds, total = ack_latency.buckets(counters)
    yield HistogramMetricFamily(
        "gpuvigil_ingest_ack_latency_seconds", "Time from a message's arrival until it is durable.",
        buckets=bounds, sum_value=total,
    )  # fmt: skip
    families: dict[str, list[tuple[str, float]]] = {}
    for key, value in sorted(counters.items()):
        name, _, reason = key.partition(":")
        if not key.startswith(ack_latency.NAME):
            families.setdefault(name, []).append((reason, value))
    for name, rows in families.items():
        full = "gpuvigil_ingest_" + re.sub(r"[^a-z0-9_]", "_", name.removeprefix("ingest_").lower())
        kind = CounterMetricFamily if full.endswith("_total") else GaugeMetricFamily
        labels = ["reason"] if any(reason for reason, _ in rows) else []
        text = f"Ingest: {name.removesuffix('_total').replace('_', ' ')}."
        family = kind(full.removesuffix("_total"), text, labels=labels)
        for reason, value in _largest(rows):
            family.add_metric([reason] if labels else [], value)
        yield family


def _largest(rows: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Keep each family within its own bound: the largest reasons, the rest summed as `other`."""
    if len(rows) <= _REASONS_MAX:
        return rows
    ranked = sorted(rows, key=lambda row: (-row[1], row[0]))
    rest = Tally({"other": sum(value for _, value in ranked[_REASONS_MAX - 1 :])})
    kept = Tally(dict(ranked[: _REASONS_MAX - 1]))
    return sorted((kept + rest).items())


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
