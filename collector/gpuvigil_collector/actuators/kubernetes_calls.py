"""What hold and move share: the fence, one write whose outcome is named, and Events for people."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

from gpuvigil_collector.action import Action, AmbiguousError, Fence, RefusedError
from gpuvigil_collector.kube.api import Deadline, KubeApi, KubeError, StatusError, UnsentError
from gpuvigil_collector.kube.lease import Record, lease_path
from gpuvigil_protos import log

_log = log.get("kubernetes")
_EVENT_NAMESPACE: Final = "default"  # where Kubernetes keeps the Events of nodes
_MESSAGE_MAX: Final = 1000
EVENT_S: Final = 2.0
_LEAST_S: Final = 1.0  # with less of the lease left, no answer can be waited for


class Calls:
    """Writes of one action. now_ns: the clock that the fence's end is told in."""

    def __init__(self, api: KubeApi, now_ns: Callable[[], int]) -> None:
        self.api, self._now_ns = api, now_ns
        self.events_lost = 0
        self._highest = 0
        self.writes = 0
        """Writes that may have had an effect, ever."""

    def now_ns(self) -> int:
        """Return the time, ns, UTC."""
        return self._now_ns()

    def check(self, fence: Fence) -> float:
        """Return the seconds for which we may still act. Raises RefusedError when there are too few."""
        if self._highest > fence.generation:
            raise RefusedError(f"generation {fence.generation} is over: {self._highest} has acted since")
        self._highest = fence.generation
        left = (fence.until_ns - self._now_ns()) / 1e9
        if left < _LEAST_S:
            raise RefusedError(f"the lease of {fence.holder} (generation {fence.generation}) is over")
        return left

    def ask_the_lease(self, namespace: str, fence: Fence, deadline: Deadline) -> None:
        """Refuse when the cluster's own Lease names a later generation; where none is kept there, go on.

        A collector that was stopped between its last look at its lease and now finds out here.
        Raises RefusedError or KubeError.
        """
        try:
            found = self.api.get(lease_path(namespace), Record, deadline)
        except StatusError as error:
            if error.code in (403, 404):
                return
            raise
        newest = found.spec.lease_transitions or 0
        if found.spec.holder_identity and newest > fence.generation:
            raise RefusedError(f"generation {fence.generation} is over: the Lease says {newest}")

    def write(self, what: str, call: Callable[[Deadline], object], fence: Fence, deadline: Deadline) -> None:
        """Have one effect, within half of what is left of the lease.

        Raises RefusedError when it has not happened for certain, AmbiguousError when nobody can tell, and
        StatusError for 404, 409 and 429, which the caller knows how to read.
        """
        seconds = min(deadline.left(), self.check(fence) / 2)
        try:
            call(Deadline(seconds))
        except StatusError as error:
            if error.code in (404, 409, 429):
                raise
            self.writes += not error.certain
            kind = RefusedError if error.certain else AmbiguousError
            raise kind(f"{what}: {error}") from None
        except UnsentError as error:
            raise RefusedError(f"{what}: {error}") from None
        except KubeError as error:
            self.writes += 1
            raise AmbiguousError(f"{what}: {error}") from None
        self.writes += 1

    def event(self, action: Action, reason: str, message: str, kind: Literal["Normal", "Warning"]) -> None:
        """Write an Event on the node, for `kubectl describe node`; one that fails is counted and logged."""
        now = datetime.fromtimestamp(self._now_ns() / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        node = action.proposal.node
        body = {
            "metadata": {"name": f"gpuvigil.{uuid.uuid4().hex}", "namespace": _EVENT_NAMESPACE},
            # like the kubelet: `kubectl describe node` looks for the node's name as uid
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
            "reason": reason,
            "message": f"{message} [incident {action.proposal.incident}]"[:_MESSAGE_MAX],
            "type": kind,
            "source": {"component": "gpuvigil"},
            "reportingComponent": "gpuvigil.io/collector",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            self.api.post(f"/api/v1/namespaces/{_EVENT_NAMESPACE}/events", body, Deadline(EVENT_S))
        except KubeError as error:
            self.events_lost += 1
            _log.warning("event_not_written", node=node, reason=reason, error=str(error))


def pause(seconds: float) -> None:
    """Wait between two tries."""
    time.sleep(seconds)
