"""The few fields of Kubernetes objects that are read, decoded strictly: a wrong type is an error.

The API adds fields with every version, so unknown ones are let pass. Everything else in an answer of the
wrong shape ends as LostError (api.py) that names the field.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from gpuvigil_collector.kube.api import KubeError, Page

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.:]{0,251}[a-z0-9])?\Z")  # a DNS subdomain, or system:name


class _Object(msgspec.Struct, frozen=True, rename="camel"):
    pass


class Owner(_Object, frozen=True):
    """One ownerReference. controller: this owner makes the object again when it goes."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False


class Meta(_Object, frozen=True):
    """metadata."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    owner_references: list[Owner] = msgspec.field(default_factory=list)
    deletion_timestamp: str | None = None
    creation_timestamp: str | None = None
    managed_fields: list[Managed] = msgspec.field(default_factory=list)


class Managed(_Object, frozen=True):
    """Who last changed which fields (fieldsV1 is a tree of `f:name` keys)."""

    manager: str = ""
    fields_v1: dict[str, Any] = msgspec.field(default_factory=dict, name="fieldsV1")


class Taint(_Object, frozen=True, omit_defaults=True):
    """A taint; two are one when key and effect are."""

    key: str
    effect: str
    value: str = ""
    time_added: str | None = None


class NodeSpec(_Object, frozen=True):
    """spec of a node."""

    unschedulable: bool = False
    taints: list[Taint] = msgspec.field(default_factory=list)


class Condition(_Object, frozen=True):
    """One NodeCondition. status: "True", "False" or "Unknown"."""

    type: str
    status: str
    reason: str = ""


class NodeStatus(_Object, frozen=True):
    """status of a node. capacity: quantities as text."""

    capacity: dict[str, str] = msgspec.field(default_factory=dict)
    conditions: list[Condition] = msgspec.field(default_factory=list)


class Node(_Object, frozen=True):
    """A node."""

    metadata: Meta
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)


class Needs(_Object, frozen=True):
    """A container's resources."""

    requests: dict[str, str | int] = msgspec.field(default_factory=dict)
    limits: dict[str, str | int] = msgspec.field(default_factory=dict)


class Container(_Object, frozen=True):
    """A container of a pod. stdin with tty: somebody sits at it."""

    name: str = ""
    resources: Needs = msgspec.field(default_factory=Needs)
    stdin: bool = False
    tty: bool = False


class PodSpec(_Object, frozen=True):
    """spec of a pod."""

    node_name: str = ""
    restart_policy: str = "Always"
    containers: list[Container] = msgspec.field(default_factory=list)
    resource_claims: list[dict[str, Any]] = msgspec.field(default_factory=list)


class PodStatus(_Object, frozen=True):
    """status of a pod."""

    phase: str = ""


class Pod(_Object, frozen=True):
    """A pod."""

    metadata: Meta
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)

    @property
    def live(self) -> bool:
        """True while it has not ended and nobody has asked it to."""
        return self.status.phase not in ("Succeeded", "Failed") and self.metadata.deletion_timestamp is None

    @property
    def gpus(self) -> int:
        """GPUs and MIG slices that it asks for; a device claim counts as one at least."""
        asked = sum(_gpus(one.resources) for one in self.spec.containers)
        return asked or len(self.spec.resource_claims)

    @property
    def controller(self) -> Owner | None:
        """Who makes it again when it goes; None for a bare pod."""
        return next((one for one in self.metadata.owner_references if one.controller), None)


class Workload(_Object, frozen=True):
    """An owner of pods, of whatever kind: what is said about restarts lies in spec and status."""

    metadata: Meta
    spec: dict[str, Any] = msgspec.field(default_factory=dict)
    status: dict[str, Any] = msgspec.field(default_factory=dict)


class Namespace(_Object, frozen=True):
    """A namespace."""

    metadata: Meta


class Selector(_Object, frozen=True):
    """A label selector. Empty selects all."""

    match_labels: dict[str, str] = msgspec.field(default_factory=dict)
    match_expressions: list[dict[str, Any]] = msgspec.field(default_factory=list)


class BudgetSpec(_Object, frozen=True):
    """spec of a PodDisruptionBudget. No selector selects nothing."""

    selector: Selector | None = None


class BudgetStatus(_Object, frozen=True):
    """status of a PodDisruptionBudget."""

    disruptions_allowed: int = 0
    desired_healthy: int = 0
    expected_pods: int = 0


class Budget(_Object, frozen=True):
    """A PodDisruptionBudget."""

    metadata: Meta
    spec: BudgetSpec = msgspec.field(default_factory=BudgetSpec)
    status: BudgetStatus = msgspec.field(default_factory=BudgetStatus)


class NodePage(_Object, frozen=True):
    """A page of nodes."""

    items: list[Node]
    metadata: Page


class PodPage(_Object, frozen=True):
    """A page of pods."""

    items: list[Pod]
    metadata: Page


class NamespacePage(_Object, frozen=True):
    """A page of namespaces."""

    items: list[Namespace]
    metadata: Page


class BudgetPage(_Object, frozen=True):
    """A page of PodDisruptionBudgets."""

    items: list[Budget]
    metadata: Page


def path_word(name: str) -> str:
    """Return a name that may stand in a path. Raises KubeError for what is no name of Kubernetes."""
    if not _NAME.match(name):
        raise KubeError(f"expected a Kubernetes name, got {name[:80]!r}")
    return name


def node_path(name: str) -> str:
    """Return the path of a node. Raises KubeError for what is no name."""
    return f"/api/v1/nodes/{path_word(name)}"


def is_gpu(resource: str) -> bool:
    """True for GPUs and MIG slices as the device plugins name them."""
    return resource.startswith(("nvidia.com/gpu", "nvidia.com/mig-"))


def _gpus(needs: Needs) -> int:
    wanted = {**needs.requests, **needs.limits}
    return sum(quantity(value) for name, value in wanted.items() if is_gpu(name))


def quantity(value: str | int) -> int:
    """Read a whole number of devices. Raises KubeError for anything else."""
    text = str(value)
    if not text.isdecimal() or len(text) > 9:
        raise KubeError(f"resources: expected a whole number of GPUs, got {text[:80]!r}")
    return int(text)
