"""Hold and release of a node: cordon, taint and marks in one patch, and back.

Nothing running is touched. Every patch carries the resourceVersion that was judged; when somebody else
changed the node meanwhile the server refuses, and the node is judged anew.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from gpuvigil_collector.action import Action, AmbiguousError, Fence, Look, RefusedError
from gpuvigil_collector.actuators.kubernetes_calls import Calls, pause
from gpuvigil_collector.kube import marks, others
from gpuvigil_collector.kube.api import STRATEGIC, Deadline, KubeError, StatusError
from gpuvigil_collector.kube.objects import Node, node_path
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_protos import log

_TRIES: Final = 5
_SETTLE_S: Final = 3.0
_SETTLE_LOOKS: Final = 20
_log = log.get("kubernetes")

State = Literal["absent", "done", "foreign"]
_TAKEN: Final = "our marks stand, but somebody took the cordon or the taint off or changed it"


class Holding:
    """Holds and releases nodes."""

    def __init__(self, calls: Calls, settings: KubernetesSettings) -> None:
        self._calls, self._settings = calls, settings

    def look(self, action: Action, deadline: Deadline) -> Look:
        """Say whether the node is held, or given back, as far as the action's incident goes."""
        node = self._read(action, deadline)
        state, said = self._held(node, action) if action.proposal.kind == "hold" else self._free(node, action)
        return Look(state=state, detail=said, token=node.metadata.resource_version)

    def _held(self, node: Node, action: Action) -> tuple[State, str]:
        state, entry = marks.standing(node, self._settings.taint_key), marks.held(node)
        if state == "taken":
            return "foreign", _TAKEN
        if state == "foreign":
            return "foreign", "cordoned or tainted by somebody else"
        ours = entry is not None and action.proposal.incident in entry.incidents
        return ("done" if ours else "absent"), _said(entry)

    def _free(self, node: Node, action: Action) -> tuple[State, str]:
        entry = marks.held(node)
        if entry is not None and action.proposal.incident in entry.incidents:
            return "absent", _said(entry)
        if entry is None and marks.tainted(node, self._settings.taint_key):
            return "absent", "our taint came back: a stale write of another"
        if marks.standing(node, self._settings.taint_key) != "foreign":
            return "done", _said(entry) or "nothing of ours"
        # before: we had nothing to take back. After: what was ours is off, another's hold stays.
        return ("done" if action.before else "foreign"), "nothing of ours; held by somebody else"

    def hold(self, action: Action, fence: Fence, deadline: Deadline) -> str:
        """Cordon and taint the node, marked as ours. Raises RefusedError or AmbiguousError."""
        for _ in range(_TRIES):
            node = self._judged(action, fence, deadline)
            self._may_touch(node)
            state, entry = marks.standing(node, self._settings.taint_key), marks.held(node)
            if state == "foreign":
                raise RefusedError(f"{node.metadata.name}: cordoned or tainted by somebody else already")
            if state == "taken":
                raise RefusedError(f"{node.metadata.name}: {_TAKEN}: a person decides")
            if entry is None or action.proposal.incident not in entry.incidents:
                if not self._patched(
                    action,
                    node,
                    marks.hold_patch(node, self._entry(action, fence), self._settings.taint_key),
                    fence,
                    deadline,
                ):
                    continue
                self._settle(action, fence, deadline)
                self._calls.event(action, "CordonSucceeded", action.proposal.reason, "Warning")
            said = self._condition(action, fence, deadline, bad=True)
            return f"{node.metadata.name} is cordoned and tainted {self._settings.taint_key}{said}"
        raise RefusedError(f"{action.proposal.node}: changed by others {_TRIES} times in a row")

    def release(self, action: Action, fence: Fence, deadline: Deadline) -> str:
        """Take back what is ours. Raises RefusedError or AmbiguousError."""
        for _ in range(_TRIES):
            node = self._judged(action, fence, deadline)
            state, entry = marks.standing(node, self._settings.taint_key), marks.held(node)
            name, incident = node.metadata.name, action.proposal.incident
            residue = entry is None and marks.tainted(node, self._settings.taint_key)
            if not residue and (entry is None or incident not in entry.incidents):
                if state == "foreign":
                    raise RefusedError(f"{name}: held by somebody else, nothing there is ours")
                return f"{name}: nothing of incident {incident} to take back; {_said(entry) or 'not held'}"
            self._may_release(node)
            change = marks.release_patch(node, incident, fence.generation, self._settings.taint_key)
            if not self._patched(action, node, change, fence, deadline):
                continue
            rest = [one for one in (entry.incidents if entry else ()) if one != incident]
            if rest:
                return f"{name}: stays held for {', '.join(rest)}"
            self._settle(action, fence, deadline)
            self._calls.event(action, "UncordonSucceeded", action.proposal.reason, "Normal")
            said = self._condition(action, fence, deadline, bad=False)
            return f"{name}: our marks are off{_left(node, change)}{said}"
        raise RefusedError(f"{action.proposal.node}: changed by others {_TRIES} times in a row")

    def _entry(self, action: Action, fence: Fence) -> marks.Held:
        return marks.new_entry(
            by=fence.holder,
            incident=action.proposal.incident,
            action=action.proposal.id,
            reason=action.proposal.reason,
            generation=fence.generation,
            now_ns=self._calls.now_ns(),
        )

    def _read(self, action: Action, deadline: Deadline) -> Node:
        node = self._calls.api.get(node_path(action.proposal.node), Node, deadline)
        if node.metadata.name != action.proposal.node or not node.metadata.resource_version:
            raise KubeError(
                f"{action.proposal.node}: expected this node with its version, got another answer"
            )
        return node

    def _judged(self, action: Action, fence: Fence, deadline: Deadline) -> Node:
        """Read the node before a change; nothing has happened yet, so every failure is a refusal."""
        self._calls.check(fence)
        if deadline.over:
            raise RefusedError(f"{action.proposal.node}: no time left")
        node = self._read(action, deadline)
        entry = marks.held(node)
        if entry is not None and entry.generation > fence.generation:
            raise RefusedError(
                f"{action.proposal.node}: marked by generation {entry.generation}, ours is {fence.generation}"
            )
        return node

    def _may_touch(self, node: Node) -> None:
        why = others.protected(node) or others.maintenance(node) or others.remediator(node)
        if why:
            raise RefusedError(f"{node.metadata.name}: {why}")

    def _may_release(self, node: Node) -> None:
        """A node under others' maintenance was cordoned when they came: they count on it."""
        if why := others.maintenance(node):
            raise RefusedError(f"{node.metadata.name}: not given back during maintenance: {why}")

    def _patched(
        self, action: Action, node: Node, change: dict[str, Any], fence: Fence, deadline: Deadline
    ) -> bool:
        """Write one patch; False when somebody was faster."""
        path = node_path(node.metadata.name)
        try:
            self._calls.write(
                action.proposal.kind,
                lambda left: self._calls.api.patch(path, change, Node, left),
                fence,
                deadline,
            )
        except StatusError as error:
            if error.code != 409:
                raise
            return False
        return True

    def _settle(self, action: Action, fence: Fence, deadline: Deadline) -> None:
        """Watch until the node controller has reacted, and mend what its stale write did to our taint.

        The effect stands already: what fails here is logged and found by the next look.
        """
        end = Deadline(min(_SETTLE_S, deadline.left()))
        try:
            for _ in range(_SETTLE_LOOKS):
                pause(_SETTLE_S / _SETTLE_LOOKS)
                node = self._read(action, end)
                change = marks.taint_patch(node, self._settings.taint_key)
                if change is not None:
                    self._patched(action, node, change, fence, end)
                elif marks.reacted(node) or end.over:
                    return
        except (KubeError, RefusedError, AmbiguousError) as error:
            _log.warning("node_not_settled", node=action.proposal.node, error=str(error))

    def _condition(self, action: Action, fence: Fence, deadline: Deadline, *, bad: bool) -> str:
        """Write or take away our NodeCondition, where the site has asked for one; say what became of it."""
        if not self._settings.condition:
            return ""
        path = f"{node_path(action.proposal.node)}/status"
        row = _condition_row(self._settings.condition, action, self._calls.now_ns(), bad=bad)
        try:
            self._calls.check(fence)
            self._calls.api.patch(path, {"status": {"conditions": [row]}}, Node, deadline, STRATEGIC)
        except (KubeError, RefusedError) as error:  # the hold itself stands: people are told, nothing more
            return f"; condition {self._settings.condition} not written: {error}"
        return f"; condition {self._settings.condition} {'True' if bad else 'taken away'}"


def _condition_row(name: str, action: Action, now_ns: int, *, bad: bool) -> dict[str, str]:
    if not bad:
        return {"type": name, "$patch": "delete"}
    when = marks.stamp(now_ns)
    return {
        "type": name,
        "status": "True",
        "reason": "GpuvigilHold",
        "message": f"{action.proposal.reason[:200]} [incident {action.proposal.incident}]",
        "lastTransitionTime": when,
        "lastHeartbeatTime": when,
    }


def _said(entry: marks.Held | None) -> str:
    return f"held by {entry.by} for {', '.join(entry.incidents)}" if entry else ""


def _left(node: Node, change: dict[str, Any]) -> str:
    """Say why a release left the node cordoned, "" when it did not."""
    if not node.spec.unschedulable or "unschedulable" in change.get("spec", {}):
        return ""
    if not node.metadata.managed_fields:
        return "; the server does not say whose the cordon is, so it stays"
    return "; the cordon is another's and stays"
