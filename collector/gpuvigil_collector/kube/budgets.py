"""PodDisruptionBudgets: which of them stand over a gang, and whether they let it go as a whole.

The server asks one pod at a time. Half a gang evicted is a gang that has lost its work for nothing, so all
budgets are asked beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gpuvigil_collector.kube.api import Deadline, KubeApi, KubeError, StatusError
from gpuvigil_collector.kube.objects import Budget, BudgetPage, Pod, Selector, path_word

_BUDGETS_MAX = 20_000


class _Version(msgspec.Struct, frozen=True, rename="camel"):
    group_version: str


class _Group(msgspec.Struct, frozen=True):
    versions: list[_Version]


def read_budgets(api: KubeApi, deadline: Deadline, namespace: str = "") -> list[Budget]:
    """Read the budgets of a namespace, or all, in the version that the server has. Raises KubeError."""
    try:
        served = {one.group_version for one in api.get("/apis/policy", _Group, deadline).versions}
    except StatusError as error:
        if error.code == 404:
            return []
        raise
    version = next((one for one in ("policy/v1", "policy/v1beta1") if one in served), None)
    if version is None:
        raise KubeError(f"policy: expected v1 or v1beta1, the server has {sorted(served)!r}"[:200])
    where = f"/namespaces/{path_word(namespace)}" if namespace else ""
    return list(api.items(f"/apis/{version}{where}/poddisruptionbudgets", BudgetPage, deadline, _BUDGETS_MAX))


def over(pod: Pod, budgets: Iterable[Budget]) -> list[Budget]:
    """Return the budgets that stand over a pod."""
    home = [one for one in budgets if one.metadata.namespace == pod.metadata.namespace]
    return [one for one in home if one.spec.selector and selects(one.spec.selector, pod.metadata.labels)]


def refused_by(pods: Sequence[Pod], budgets: Sequence[Budget]) -> str:
    """Return the budget that does not let all these pods go now, with its numbers; "" when all do.

    Raises KubeError for a pod with two budgets: the server refuses to evict such a pod at all.
    """
    wanted: dict[str, int] = {}
    for pod in pods:
        names = [one.metadata.name for one in over(pod, budgets)]
        if len(names) > 1:
            raise KubeError(f"{pod.metadata.name}: two disruption budgets, {names[0]} and {names[1]}")
        for name in names:
            wanted[name] = wanted.get(name, 0) + 1
    for one in budgets:
        allowed, count = one.status.disruptions_allowed, wanted.get(one.metadata.name, 0)
        if count > allowed:
            return f"disruption budget {one.metadata.name} lets {allowed} of {count} pods go"
    return ""


def never_allows(pods: Sequence[Pod], budgets: Sequence[Budget]) -> bool:
    """Return whether a budget asks for as many healthy pods as there are: waiting would not help."""
    found = {one.metadata.name: one for pod in pods for one in over(pod, budgets)}
    return any(0 < one.status.expected_pods <= one.status.desired_healthy for one in found.values())


def selects(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Return whether a label selector selects; an operator that is not known selects, to be careful."""
    fixed = all(labels.get(key) == value for key, value in selector.match_labels.items())
    return fixed and all(_fits(one, labels) for one in selector.match_expressions)


def _fits(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = str(expression.get("key", "")), expression.get("values")
    among = isinstance(values, list) and labels.get(key) in values
    match expression.get("operator"):
        case "In":
            return among
        case "NotIn":
            return not among
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            return True
