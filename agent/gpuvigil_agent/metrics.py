"""The agent's own metrics endpoint: newest readings, raw totals, and the agent's own health.

Rendered on the endpoint's thread at each scrape. What is absent has no line: nothing old, nothing 0.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

from gpuvigil_agent.exposition import Family, Renderer
from gpuvigil_agent.metrics_health import health_families
from gpuvigil_agent.metrics_server import MetricsServer
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import catalog
from gpuvigil_protos.catalog import Metric
from gpuvigil_protos.entity import gpu_uuid_of, job_and_rank_of
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
    "rank": ("node", "training_job", "rank"),
}  # fmt: skip


def serve(agent: Agent, address: str) -> MetricsServer:
    """Start the endpoint. Raises ConfigError when the port is taken."""
    host, _, port = address.rpartition(":")
    renderer = Renderer()
    try:
        server = MetricsServer(host.strip("[]"), int(port), lambda: renderer.render(_families(agent)))
    except OSError as error:
        why = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(f"metrics.address: expected a free port, got {address}: {why}") from None
    server.start()
    return server


def _families(agent: Agent) -> Iterator[Family]:
    indices = {gpu.uuid: str(gpu.index) for gpu in agent.driver.gpus}
    gone = {gpu.uuid for gpu in agent.driver.gpus if not gpu.seen}
    present = (s for s in agent.collect.latest.samples() if gpu_uuid_of(s.entity) not in gone)
    yield from sample_families(agent.node, indices, present)
    yield from _gpu_families(agent)
    yield from health_families(agent)


def sample_families(node: str, indices: dict[str, str], samples: Iterator[Sample]) -> Iterator[Family]:
    """Turn readings into families, one a metric; indices: GPU UUID -> NVML index, as text."""
    families: dict[str, Family] = {}
    reasons = Family(
        "gpuvigil_gpu_clocks_event_reason_active", "gauge",
        "1 while this reason holds clocks below their maximum.", ("node", "gpu", "uuid", "reason"),
    )  # fmt: skip
    for metric, entity, value in samples:
        labels = labels_of(metric, node, entity, indices)
        if metric is catalog.GPU_CLOCKS_EVENT_REASONS:
            for bit, name in REASONS:
                reasons.add((*labels, name), 1.0 if int(value) & bit else 0.0)
            continue
        family = families.get(metric.name)
        if family is None:
            family = families[metric.name] = _family(metric)
        family.add(labels, value)
    yield from families.values()
    if reasons.rows:
        yield reasons


def _family(metric: Metric) -> Family:
    kind: Literal["gauge", "counter"] = "counter" if metric.kind == "counter" else "gauge"
    name = f"gpuvigil_{metric.name}"
    if kind == "counter":
        name = name.removesuffix("_total")
    return Family(name, kind, metric.help, _LABELS[metric.entity_kind])


def labels_of(metric: Metric, node: str, entity: str, indices: dict[str, str]) -> tuple[str, ...]:
    """Return the label values of an entity in the order of its kind's labels."""
    uuid = gpu_uuid_of(entity)
    if uuid is not None:
        link = (entity.rpartition("/")[2],) if metric.entity_kind == "nvlink" else ()
        return (node, indices.get(uuid, ""), uuid, *link)
    ranked = job_and_rank_of(entity)
    if ranked is not None:
        return (node, ranked[0], str(ranked[1]))
    rest = entity.partition(":")[2]
    return (node, rest) if rest else (node,)


def _gpu_families(agent: Agent) -> Iterator[Family]:
    info = Family(
        "gpuvigil_gpu_info", "gauge", "1 for each GPU that answers.",
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
            info.add(labels, 1.0)
    yield info
    xids = Family(
        "gpuvigil_xid", "counter", "Xid errors seen, by the driver's events or else the kernel log.",
        labels=("node", "gpu", "uuid", "xid"),
    )  # fmt: skip
    last = Family(
        "gpuvigil_last_xid_timestamp_seconds",
        "gauge",
        "When the GPU's newest Xid came.",
        labels=("node", "gpu", "uuid"),
    )
    indices = {gpu.uuid: str(gpu.index) for gpu in agent.driver.gpus}
    for (uuid, code), number in list(agent.events.xids.items()):
        xids.add((agent.node, indices.get(uuid, ""), uuid, str(code)), number)
    for uuid, time_ns in list(agent.events.last_xid_ns.items()):
        last.add((agent.node, indices.get(uuid, ""), uuid), time_ns / 1e9)
    yield xids
    yield last
