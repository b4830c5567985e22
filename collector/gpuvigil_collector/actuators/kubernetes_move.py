"""Moving a job: its gang's pods are evicted, and its owner makes them again elsewhere.

By the eviction API alone, so that disruption budgets hold; never by deleting. A pod is evicted under its uid:
the pod that came in its place is another and is left alone, however often this is tried.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from gpuvigil_collector.action import Action, AmbiguousError, Fence, Look, RefusedError
from gpuvigil_collector.actuators.kubernetes_calls import Calls, pause
from gpuvigil_collector.kube.api import Deadline, KubeError, Resources, StatusError
from gpuvigil_collector.kube.budgets import read_budgets, refused_by
from gpuvigil_collector.kube.objects import Namespace, Pod, PodPage, path_word
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_collector.kube.workload import Gang, Owners, gangs, refusals

_PODS_MAX: Final = 2048  # of one gang: their tokens are kept with the action
_TOKEN_CHARACTERS: Final = 8
_RETRY_S: Final = 1.0


class Moving:
    """Evicts gangs."""

    def __init__(self, calls: Calls, settings: KubernetesSettings) -> None:
        self._calls, self._settings = calls, settings
        self._version = ""

    def look(self, action: Action, deadline: Deadline) -> Look:
        """Say whether the pods that the token names still run. The first look makes the token."""
        gang = self._gang(action, deadline)
        pods = _unit(gang, action) if gang else []
        if not action.before:
            return Look(state="absent", detail=f"{len(pods)} pods", token="".join(map(_token, pods)))
        left = _still(pods, action.before)
        total = len(action.before) // _TOKEN_CHARACTERS
        detail = f"{total - len(left)} of {total} pods evicted"
        state: Literal["absent", "done"] = "absent" if left else "done"
        return Look(state=state, detail=detail, token=action.before, partly=0 < len(left) < total)

    def move(self, action: Action, fence: Fence, deadline: Deadline) -> str:
        """Evict the gang's pods, all of them or none as far as budgets tell beforehand.

        Raises RefusedError while no pod is evicted, AmbiguousError when only a part of them is.
        """
        self._calls.check(fence)
        gang = self._gang(action, deadline)
        if gang is None:
            if action.before:
                return f"{action.proposal.job}: no pod of it is left"
            raise RefusedError(f"{action.proposal.job}: Kubernetes has no such job with running pods")
        unit = _unit(gang, action)
        pods = _still(unit, action.before) if action.before else unit
        if not pods:
            return f"{action.proposal.job}: its pods were evicted already"
        self._may_move(gang, pods, deadline)
        self._wait_for_budgets(pods, fence, deadline)
        self._calls.event(action, "DrainStarting", f"evicting {len(pods)} pods of {gang.job}", "Warning")
        self._evict_all(action, pods, fence, deadline)
        said = f"evicted {len(pods)} pods of {gang.job}"
        self._calls.event(action, "DrainSucceeded", said, "Warning")
        return said

    def _gang(self, action: Action, deadline: Deadline) -> Gang | None:
        """Find the job's live pods. Raises KubeError, also for a name that is none."""
        namespace, slash, rest = action.proposal.job.partition("/")
        if not slash or "/" not in rest:
            raise KubeError(f"job: expected NAMESPACE/KIND/NAME, got {action.proposal.job[:80]!r}")
        path = f"/api/v1/namespaces/{path_word(namespace)}/pods"
        pods = list(self._calls.api.items(path, PodPage, deadline, self._settings.pods_max))
        owners = Owners(self._calls.api, deadline, self._settings.owners_max)
        return gangs(pods, owners).get(action.proposal.job)

    def _may_move(self, gang: Gang, pods: Sequence[Pod], deadline: Deadline) -> None:
        namespace = gang.pods[0].metadata.namespace
        home = self._calls.api.get(f"/api/v1/namespaces/{path_word(namespace)}", Namespace, deadline)
        words = refusals(gang, {namespace: home.metadata}, self._settings.restarts_left, pods)
        if words:
            raise RefusedError(f"{gang.job}: not moved: {', '.join(words)}")
        if len(pods) > _PODS_MAX:
            raise RefusedError(f"{gang.job}: expected at most {_PODS_MAX} pods, got {len(pods)}")

    def _wait_for_budgets(self, pods: Sequence[Pod], fence: Fence, deadline: Deadline) -> None:
        namespace = pods[0].metadata.namespace
        while why := refused_by(pods, read_budgets(self._calls.api, deadline, namespace)):
            self._wait(deadline, fence, RefusedError(why))

    def _evict_all(self, action: Action, pods: Sequence[Pod], fence: Fence, deadline: Deadline) -> None:
        for done, pod in enumerate(pods):
            try:
                self._evict(pod, fence, deadline)
            except RefusedError as error:
                self._calls.event(action, "DrainFailed", str(error), "Warning")
                if not done:
                    raise
                raise AmbiguousError(f"{done} of {len(pods)} pods evicted, then: {error}") from None

    def _evict(self, pod: Pod, fence: Fence, deadline: Deadline) -> None:
        name, namespace = path_word(pod.metadata.name), path_word(pod.metadata.namespace)
        body = {
            "apiVersion": self._eviction_version(deadline),
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": pod.metadata.uid}},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        what = f"evict {namespace}/{name}"
        while True:
            try:
                self._calls.write(what, lambda left: self._calls.api.post(path, body, left), fence, deadline)
            except AmbiguousError:
                # asked under its uid: when no such pod runs any more, it is evicted or was replaced
                if self._is_there(pod, deadline):
                    raise
            except StatusError as error:
                if error.code != 404 and (error.code != 409 or self._is_there(pod, deadline)):
                    wait = max(_RETRY_S, error.retry_s)
                    self._wait(deadline, fence, RefusedError(f"{namespace}/{name}: {error}"), wait)
                    continue
            return

    def _is_there(self, pod: Pod, deadline: Deadline) -> bool:
        path = f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}"
        try:
            now = self._calls.api.get(path, Pod, deadline)
        except StatusError as error:
            if error.code == 404:
                return False
            raise
        return now.metadata.uid == pod.metadata.uid and now.live

    def _wait(self, deadline: Deadline, fence: Fence, why: RefusedError, seconds: float = _RETRY_S) -> None:
        """Wait before the next try. Raises `why` when there is no time for one."""
        if min(deadline.left(), self._calls.check(fence)) <= seconds:
            raise why
        pause(seconds)

    def _eviction_version(self, deadline: Deadline) -> str:
        """Return the version of an Eviction that this server takes, by discovery.

        Not that of PodDisruptionBudget: servers of 1.21 have policy/v1 and still want a v1beta1 Eviction.
        """
        if not self._version:
            rows = self._calls.api.get("/api/v1", Resources, deadline).resources
            row = next((one for one in rows if one.name == "pods/eviction"), None)
            if row is None or not row.version:
                raise KubeError("pods/eviction: the server does not serve it")
            self._version = f"{row.group}/{row.version}"
        return self._version


def _unit(gang: Gang, action: Action) -> list[Pod]:
    """The pods that go together: the gang, or of pods that stand alone those on the faulty node."""
    if gang.one_by_one:
        return [pod for pod in gang.pods if pod.spec.node_name == action.proposal.node]
    return list(gang.pods)


def _still(pods: Iterable[Pod], before: str) -> list[Pod]:
    tokens = {before[at : at + _TOKEN_CHARACTERS] for at in range(0, len(before), _TOKEN_CHARACTERS)}
    return [pod for pod in pods if _token(pod) in tokens]


def _token(pod: Pod) -> str:
    digest = hashlib.sha256(pod.metadata.uid.encode()).digest()
    return base64.urlsafe_b64encode(digest[:6]).decode()
