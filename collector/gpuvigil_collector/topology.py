"""What is a part of what: node -> GPUs, from the agents' inventories.

Without a site file, switches and racks are unknown and the fleet is one failure domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpuvigil_detectors.base import FactEvent, GpuFact, NodeFact
from gpuvigil_protos import entity as names

ONE_DOMAIN = "no site file: the whole fleet is treated as one failure domain"


@dataclass(frozen=True, slots=True)
class Topology:
    """A view of the registered nodes; cheap to make each tick."""

    nodes: Mapping[str, NodeFact]

    @property
    def node_count(self) -> int:
        """Registered nodes, silent ones included."""
        return len(self.nodes)

    def gpus(self, node: str) -> tuple[GpuFact, ...]:
        """The GPUs that a node has or had; () for an unknown node."""
        fact = self.nodes.get(node)
        return fact.gpus if fact else ()

    def gpu_index(self, node: str, uuid: str) -> int | None:
        """The NVML index of a GPU, None when the inventory does not know it."""
        return next((gpu.index for gpu in self.gpus(node) if gpu.uuid == uuid), None)

    def gpus_total(self) -> int:
        """GPUs of all registered nodes."""
        return sum(len(fact.gpus) for fact in self.nodes.values())

    def placed(self, event: FactEvent) -> FactEvent:
        """Return the event as one about the node where it names a GPU that the node never said it has.

        A node whose inventory is unknown, as after a crash of ours, is believed.
        """
        uuid = names.gpu_uuid_of(event.entity)
        known = uuid is None or self.gpu_index(event.node, uuid) is not None
        if known or event.node not in self.nodes:
            return event
        return replace(event, entity=names.NODE)
