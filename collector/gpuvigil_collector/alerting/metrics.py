"""Families of the metrics endpoint about alerting: the mode, each replica, silences, the test alert."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gpuvigil_collector.alerting.replica import ReplicaState
from gpuvigil_collector.alerting.service import Alerting

Rows = tuple[tuple[str, str, Callable[[ReplicaState], float]], ...]

_GAUGES: Final[Rows] = (
    ("gpuvigil_alertmanager_up", "0 while alerts cannot be handed over to it.", lambda s: float(s.up)),
    ("gpuvigil_alertmanager_alerts_waiting", "Alerts that it has not taken yet.", lambda s: float(s.waiting)),
    (
        "gpuvigil_alertmanager_last_success_timestamp_seconds", "When it last took alerts.",
        lambda s: s.last_success_ns / 1e9,
    ),
)  # fmt: skip
_COUNTERS: Final[Rows] = (
    ("gpuvigil_alertmanager_alerts_sent", "Alerts that it took, each repeat counted.", lambda s: s.sent),
    ("gpuvigil_alertmanager_failures", "Requests that failed and are tried again.", lambda s: s.failures),
    ("gpuvigil_alertmanager_alerts_refused", "Alerts that it refused as such.", lambda s: s.refused),
    ("gpuvigil_alertmanager_alerts_dropped", "Ends of alerts that found no room.", lambda s: s.dropped),
)  # fmt: skip


class AlertingCollector(Collector):
    """Yields the families; per-replica ones only in mode api."""

    def __init__(self, alerting: Alerting) -> None:
        self._alerting = alerting

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Render all families of this instant."""
        config, silences = self._alerting.config, self._alerting.silences
        mode = GaugeMetricFamily("gpuvigil_alerting_info", "Who alerts: rules or api.", labels=["mode"])
        mode.add_metric([config.mode], 1)
        yield mode
        holds = float(self._alerting.trial.holds(time.time_ns()))
        yield GaugeMetricFamily("gpuvigil_test_alert", "1 while a test alert is asked for.", value=holds)
        if silences is not None:
            yield GaugeMetricFamily(
                "gpuvigil_silences", "Silences read, now and to come.", value=silences.count
            )
            yield GaugeMetricFamily(
                "gpuvigil_silences_read_timestamp_seconds", "When silences were last read.",
                value=silences.read_ns / 1e9,
            )  # fmt: skip
        if self._alerting.replicas:
            yield GaugeMetricFamily(
                "gpuvigil_alerts_left_out", "Open incidents beyond the bound on alerts, now.",
                value=self._alerting.left_out,
            )  # fmt: skip
            yield from _replica_families([replica.state for replica in self._alerting.replicas])


def _replica_families(states: list[ReplicaState]) -> Iterator[Metric]:
    for name, text, value in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=["alertmanager"])
        for state in states:
            gauge.add_metric([state.address], value(state))
        yield gauge
    for name, text, count in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=["alertmanager"])
        for state in states:
            counter.add_metric([state.address], count(state))
        yield counter
