"""Kubernetes: a hold is a cordon and one NoSchedule taint; a move evicts a gang that has opted in.

What is written is in docs/kubernetes.md. A node that the cluster does not know is refused; an API that is
unreachable, slow or answers nonsense is `unknown` to a look, and to an apply a refusal as long as nothing
was sent, an ambiguity from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from gpuvigil_collector.action import Action, AmbiguousError, Fence, Kind, Look, RefusedError
from gpuvigil_collector.actuators.kubernetes_calls import Calls
from gpuvigil_collector.actuators.kubernetes_hold import Holding
from gpuvigil_collector.actuators.kubernetes_move import Moving
from gpuvigil_collector.actuators.tools import Tools, names
from gpuvigil_collector.kube.api import Deadline, KubeApi, KubeError, connection
from gpuvigil_collector.kube.settings import KubernetesSettings

_LOOK_S: Final = 10.0
_ARRIVES_LEAST_S: Final = 20.0


class KubernetesActuator:
    """Holds nodes, releases what we held, and moves jobs, on one cluster."""

    name = "kubernetes"
    kinds: frozenset[Kind] = frozenset({"hold", "release", "move_job"})

    def __init__(
        self,
        api: KubeApi,
        settings: KubernetesSettings,
        *,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._calls = Calls(api, now_ns)
        self._namespace = settings.namespace
        self.arrives_s = max(_ARRIVES_LEAST_S, 2 * float(settings.call_timeout))
        self._holding = Holding(self._calls, settings)
        self._moving = Moving(self._calls, settings)

    def look(self, action: Action) -> Look:
        """Say whether the action's effect is in place; changes nothing."""
        part = self._moving if action.proposal.kind == "move_job" else self._holding
        if action.proposal.kind not in self.kinds:
            return Look(state="unknown", detail=f"{action.proposal.kind} is nothing that Kubernetes does")
        try:
            names(action)
            return part.look(action, Deadline(_LOOK_S))
        except (KubeError, RefusedError) as error:
            return Look(state="unknown", detail=str(error))

    def apply(self, action: Action, fence: Fence) -> str:
        """Have the effect, once; return a sentence. Raises RefusedError or AmbiguousError.

        Blocks up to the proposal's deadline where a disruption budget has to be waited for.
        """
        names(action)
        deadline = Deadline(action.proposal.deadline_s)
        verbs = {"hold": self._holding.hold, "release": self._holding.release, "move_job": self._moving.move}
        verb = verbs.get(action.proposal.kind)
        if verb is None:
            raise RefusedError(f"{action.proposal.kind} is nothing that Kubernetes does")
        wrote = self._calls.writes
        try:
            self._calls.check(fence)
            self._calls.ask_the_lease(self._namespace, fence, deadline)
            return verb(action, fence, deadline)
        except KubeError as error:
            # a read that failed: without a write before it nothing has happened
            if self._calls.writes == wrote:
                raise RefusedError(str(error)) from None
            raise AmbiguousError(str(error)) from None


def make(tools: Tools, settings: KubernetesSettings) -> Iterator[KubernetesActuator]:
    """One cluster, one actuator. Raises ConfigError for a kubeconfig that cannot be used."""
    api = KubeApi(connection(settings.kubeconfig), call_s=settings.call_timeout)
    yield KubernetesActuator(api, settings, now_ns=tools.now_ns)
