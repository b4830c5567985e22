"""The [kubernetes] table of the collector's file."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from gpuvigil_protos.settings import Seconds

_LABEL: Final = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z"
)
TAINT_KEY: Final = "gpuvigil.io/gpu-error"
_KUBELETS: Final = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
_CONDITION: Final = re.compile(r"[A-Z][A-Za-z0-9]{0,62}\Z")


class KubernetesSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The cluster, and what is written there.

    kubeconfig: a file, "" for the pod's own service account. namespace: where the collector runs; its
    Lease lies there, and the annotation gpuvigil.io/pause on it pauses all actions. condition: the type of a
    NodeCondition to write beside a hold ("" for none), True is bad. domain_labels: the first that a node has
    names its failure domain. partition_labels: likewise its partition. restarts_left: how many restarts
    a move must leave a workload.
    """

    kubeconfig: str = ""
    namespace: str = "gpuvigil"
    call_timeout: Seconds = Seconds(5)
    read_deadline: Seconds = Seconds(30)
    taint_key: str = TAINT_KEY
    condition: str = ""
    restarts_left: int = 1
    nodes_max: int = 12_000
    pods_max: int = 400_000
    owners_max: int = 5_000
    domain_labels: tuple[str, ...] = (
        "nvidia.com/gpu.clique",
        "topology.kubernetes.io/rack",
        "topology.k8s.aws/network-node-layer-3",
        "cloud.google.com/gce-topology-subblock",
        "topology.kubernetes.io/zone",
    )
    partition_labels: tuple[str, ...] = (
        "karpenter.sh/nodepool",
        "cloud.google.com/gke-nodepool",
        "eks.amazonaws.com/nodegroup",
        "kubernetes.azure.com/agentpool",
    )

    def __post_init__(self) -> None:
        """Refuse what the types alone cannot: names that are none, or that belong to others."""
        rows = {"domain_labels": self.domain_labels, "partition_labels": self.partition_labels}
        for key, names in {**rows, "taint_key": (self.taint_key,)}.items():
            for name in names:
                if not _LABEL.match(name):
                    raise ValueError(f"{key}: expected a label's name, got {name!r}")
        if self.taint_key.partition("/")[0].endswith(("kubernetes.io", "k8s.io")):
            raise ValueError(f"taint_key: {self.taint_key} belongs to Kubernetes itself")
        if self.condition and not _CONDITION.match(self.condition):
            raise ValueError(f"condition: expected a word such as GpuFault, got {self.condition!r}")
        if self.condition in _KUBELETS:
            raise ValueError(f"condition: {self.condition} belongs to the kubelet")
        for name, least in (("restarts_left", 0), ("nodes_max", 1), ("pods_max", 1), ("owners_max", 1)):
            if getattr(self, name) < least:
                got = getattr(self, name)
                raise ValueError(f"{name}: expected at least {least}, got {got}")
        if not 0.1 <= self.call_timeout <= 60:
            raise ValueError('call_timeout: expected "100ms" to "1min"')
        if not 1 <= self.read_deadline <= 600:
            raise ValueError('read_deadline: expected "1s" to "10min"')
