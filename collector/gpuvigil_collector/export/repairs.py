"""Repair on the metrics endpoint: how it stands and what was decided; a few dozen series at any size."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import Final, get_args

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from gpuvigil_collector.action import Mode
from gpuvigil_collector.repair.case import Outcome
from gpuvigil_collector.repair.stage import RepairView

_OUTCOMES: Final = tuple(outcome or "running" for outcome in get_args(Outcome))


def families(view: RepairView) -> Iterator[Metric]:
    """Render all families of repair."""
    marks = view.marks
    mode = GaugeMetricFamily("gpuvigil_remediation_mode", "1 for the mode in force.", labels=["mode"])
    for name in get_args(Mode):
        mode.add_metric([name], float(view.mode == name))
    yield mode
    yield _gauge("gpuvigil_remediation_paused", "1 while a person has paused all actions.",
                 float(marks is not None and marks.paused is not None))  # fmt: skip
    yield _gauge("gpuvigil_storm_breaker_tripped", "1 until a person closes the storm breaker.",
                 float(marks is not None and bool(marks.breaker_ns)))  # fmt: skip
    yield _gauge("gpuvigil_remediation_blocked", "1 while records are unreadable: nothing is done.",
                 float(bool(view.fault) or marks is None))  # fmt: skip
    yield _gauge("gpuvigil_remediation_leader", "1 while this collector holds the right to act.",
                 float(view.fence is not None))  # fmt: skip
    yield _gauge("gpuvigil_nodes_held", "Nodes that we keep out of service.",
                 float(len({case.node for case in view.cases if case.held})))  # fmt: skip
    yield _gauge("gpuvigil_nodes_in_maintenance", "Nodes under maintenance that was set here.",
                 float(len(marks.maintenance) if marks is not None else 0))  # fmt: skip
    yield _gauge("gpuvigil_approvals_waiting", "Actions that wait for a person.",
                 float(sum(action.state == "awaiting" for action in view.actions)))  # fmt: skip
    cases = GaugeMetricFamily("gpuvigil_cases", "Cases of repair of 28 days, by outcome.", labels=["outcome"])
    tally = Tally(case.outcome or "running" for case in view.cases)
    for outcome in _OUTCOMES:
        cases.add_metric([outcome], tally[outcome])
    yield cases
    decisions = CounterMetricFamily(
        "gpuvigil_decisions", "Decisions by kind of action, what became of it, and the gate that denied.",
        labels=["kind", "decision", "gate"],
    )  # fmt: skip
    for labels, count in sorted(view.decisions.items()):
        decisions.add_metric(list(labels), count)
    yield decisions
    wrong = CounterMetricFamily("gpuvigil_false_positives", "Incidents that an operator said were none.")
    wrong.add_metric([], marks.false_positives_ever if marks is not None else 0)
    yield wrong


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value)
