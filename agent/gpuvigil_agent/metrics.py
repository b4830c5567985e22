"""The agent's own metrics endpoint: newest readings, raw totals, and the agent's own health.

Rendered on the endpoint's thread at each scrape. What is absent has no line: nothing old, nothing 0.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gpuvigil_agent.metrics_health import health_families
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import catalog
from gpuvigil_protos.catalog import Metric
from gpuvigil_protos.entity import gpu_uuid_of
from gpuvigil_protos.settings import ConfigError

if TYPE_CHECKING:
    from gpuvigil_agent.agent import Agent

REASONS: Final = (
    (0x1, "gpu_idle"), (0x2, "applications_clocks_setting"), (0x4, "sw_power_cap"), (0x8, "hw_slowdown"),
    (0x10, "sync_boost"), (0x20, "sw_thermal_slowdown"), (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"), (0x100, "display_clock_setting"),
)  # fmt: skip
"""NVML's nvmlClocksEventReasons bits, by NVML's names."""

_LABELS: Final = {
    "node": ("node",), "gpu": ("node", "gpu", "uuid"), "nvlink": ("node", "gpu", "uuid", "link"),
    "disk": ("node", "device"), "filesystem": ("node", "mountpoint"), "interface": ("node", "interface_name"),
}  # fmt: skip
Family = GaugeMetricFamily | CounterMetricFamily


def serve(agent: Agent, address: str) -> tuple[Any, Any]:
    """Start the endpoint; returns its server and thread. Raises ConfigError when the port is taken."""
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(_Exposition(agent))
    try:
        return start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        why = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(f"metrics.address: expected a free port, got {address}: {why}") from None


class _Exposition(Collector):
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def describe(self) -> list[Family]:
        """Say nothing ahead: the registry must not scrape while it registers."""
        return []

    def collect(self) -> Iterator[Family]:
        agent = self._agent
        indices = {gpu.uuid: str(gpu.index) for gpu in agent.driver.gpus}
        yield from sample_families(agent.node, indices, agent.collect.latest.samples())
        yield from _gpu_families(agent)
        yield from health_families(agent)


def sample_families(node: str, indices: dict[str, str], samples: Iterator[Sample]) -> Iterator[Family]:
    """Turn readings into families, one a metric; indices: GPU UUID -> NVML index, as text."""
    families: dict[str, Family] = {}
    reasons = GaugeMetricFamily(
        "gpuvigil_gpu_clocks_event_reason_active", "1 while this reason holds clocks below their maximum.",
        labels=("node", "gpu", "uuid", "reason"),
    )  # fmt: skip
    for metric, entity, value in samples:
        labels = labels_of(metric, node, entity, indices)
        if metric is catalog.GPU_CLOCKS_EVENT_REASONS:
            for bit, name in REASONS:
                reasons.add_metric((*labels, name), 1.0 if int(value) & bit else 0.0)
            continue
        family = families.get(metric.name)
        if family is None:
            family = families[metric.name] = _family(metric)
        family.add_metric(labels, value)
    yield from families.values()
    if reasons.samples:
        yield reasons


def _family(metric: Metric) -> Family:
    labels = _LABELS[metric.entity_kind]
    if metric.kind == "counter":
        return CounterMetricFamily(f"gpuvigil_{metric.name}", metric.help, labels=labels)
    return GaugeMetricFamily(f"gpuvigil_{metric.name}", metric.help, labels=labels)


def labels_of(metric: Metric, node: str, entity: str, indices: dict[str, str]) -> tuple[str, ...]:
    """Return the label values of an entity in the order of its kind's labels."""
    uuid = gpu_uuid_of(entity)
    if uuid is not None:
        link = (entity.rpartition("/")[2],) if metric.entity_kind == "nvlink" else ()
        return (node, indices.get(uuid, ""), uuid, *link)
    rest = entity.partition(":")[2]
    return (node, rest) if rest else (node,)


def _gpu_families(agent: Agent) -> Iterator[Family]:
    info = GaugeMetricFamily(
        "gpuvigil_gpu_info", "1 for each GPU that answers.",
        labels=("node", "gpu", "uuid", "model", "pci_bus_id", "driver_version"),
    )  # fmt: skip
    for gpu in agent.driver.gpus:
        if gpu.seen:
            labels = (
                agent.node,
                str(gpu.index),
                gpu.uuid,
                gpu.model,
                gpu.pci_bus_id,
                agent.driver.driver_version,
            )
            info.add_metric(labels, 1.0)
    yield info
    xids = CounterMetricFamily(
        "gpuvigil_xid_total", "Xid errors seen, by the driver's events or else the kernel log.",
        labels=("node", "gpu", "uuid", "xid"),
    )  # fmt: skip
    last = GaugeMetricFamily(
        "gpuvigil_last_xid_timestamp_seconds",
        "When the GPU's newest Xid came.",
        labels=("node", "gpu", "uuid"),
    )
    indices = {gpu.uuid: str(gpu.index) for gpu in agent.driver.gpus}
    for (uuid, code), number in list(agent.events.xids.items()):
        xids.add_metric((agent.node, indices.get(uuid, ""), uuid, str(code)), number)
    for uuid, time_ns in list(agent.events.last_xid_ns.items()):
        last.add_metric((agent.node, indices.get(uuid, ""), uuid), time_ns / 1e9)
    yield xids
    yield last
