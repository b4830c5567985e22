"""The Kubernetes actuator for the contract battery, before a real API server and controller manager."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
from integration.kube_lab import KubeLab, started
from integration.kube_things import cordon, make_node, marks_of_ours, node

from gpuvigil_collector.action import Kind
from gpuvigil_collector.actuators.kubernetes import KubernetesActuator
from gpuvigil_collector.kube.marks import ACTION, GENERATION
from gpuvigil_collector.kube.settings import KubernetesSettings

NODES = ("n1", "n2")


class Wire(httpx2.BaseTransport):
    """The connection to the server: counts writes, and may swallow the answer to the next one."""

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self.inner, self.writes, self.losing = inner, 0, False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Pass the request on."""
        writes = request.method != "GET"
        self.writes += writes
        answer = self.inner.handle_request(request)
        if writes and self.losing:
            self.losing = False
            answer.read()
            raise httpx2.ReadTimeout("the answer was lost", request=request)
        return answer


class Cluster:
    """Nodes n1 and n2 of a cluster that others change too."""

    kind: Kind = "hold"

    def __init__(self, lab: KubeLab, end: ExitStack) -> None:
        self.lab, self._end = lab, end
        for name in NODES:
            make_node(lab, name=name)
        api = lab.api(call_s=2.0)
        self.wire = Wire(api._http._transport)
        api._http._transport = self.wire
        self.actuator = KubernetesActuator(api, KubernetesSettings())
        self._since = lab.admin("GET", "/api/v1/nodes")["metadata"]["resourceVersion"]

    def effects(self):
        """What the server's own history says: each change of whose action holds a node."""
        path = f"/api/v1/nodes?watch=1&timeoutSeconds=1&resourceVersion={self._since}"
        last: dict[str, str] = {}
        found = []
        for line in self.lab.text(path).splitlines():
            meta = json.loads(line)["object"]["metadata"]
            said = meta.get("annotations", {})
            if said.get(ACTION, "") != last.get(meta["name"], "") and ACTION in said:
                found.append((said[ACTION], int(said[GENERATION])))
            last[meta["name"]] = said.get(ACTION, "")
        return found

    def contacts(self):
        return self.wire.writes

    def take(self, node):
        cordon(self.lab, node)

    def taken_untouched(self, name):
        found = node(self.lab, name)
        return found["spec"]["unschedulable"] is True and marks_of_ours(found) == []

    def lose_answer(self):
        self.wire.losing = True

    def break_down(self):
        """The server stands still, until this case is over."""
        self._end.enter_context(self.lab.frozen())
        # it cannot be asked for its history any more: whatever was sent counts
        self.effects = lambda: [("sent", 0)] * self.wire.writes


@contextmanager
def kubernetes(_directory: Path) -> Iterator[Cluster]:
    """Fresh nodes on the cluster of this process."""
    lab = started()
    try:
        with ExitStack() as end:
            yield Cluster(lab, end)
    finally:
        for name in NODES:
            lab.admin("DELETE", f"/api/v1/nodes/{name}")
