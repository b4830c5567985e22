"""Hold and release a Slurm node: a drain with our Reason, and its end.

`state=undrain` and never `resume`: it takes the drain away and leaves DOWN, a reservation or a reboot as they
are. Running jobs go on: a drain keeps new ones off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpuvigil_collector.action import Action, AmbiguousError, Fence, Look, Proposal, RefusedError
from gpuvigil_collector.actuators.slurm_send import Turn, send
from gpuvigil_collector.slurm import nodes as slurm_nodes
from gpuvigil_collector.slurm import reason
from gpuvigil_collector.slurm.client import SlurmClient, UnknownError
from gpuvigil_collector.slurm.nodes import SlurmNode


@dataclass(frozen=True, slots=True)
class NodeHands:
    """Looks at nodes and changes their drain."""

    client: SlurmClient

    def look(self, action: Action, deadline_s: float) -> Look:
        """Say whether the hold, or its end, is in place. Raises UnknownError."""
        if (node := self._node(action.proposal.node, deadline_s)) is None:
            return Look(state="absent", detail=f"Slurm does not know the node {action.proposal.node}")
        return _judged(node, action)

    def apply(self, action: Action, fence: Fence, turn: Turn) -> str:
        """Hold or release the node. Raises RefusedError, AmbiguousError; UnknownError: nothing was sent."""
        if (node := self._node(action.proposal.node, turn.left_s())) is None:
            raise RefusedError(f"Slurm does not know the node {action.proposal.node}")
        look = _judged(node, action)
        if look.state == "done":
            return look.detail
        if look.state != "absent":
            raise RefusedError(f"{look.state}: {look.detail}")
        self._write(node, _wanted(node, action, fence), turn)
        return self._proof(action, node, turn)

    def in_slurms_words(self, proposal: Proposal, fence: Fence, deadline_s: float) -> Proposal:
        """Return the proposal with Slurm's name of its node; refuse where a newer collector wrote any node.

        Raises RefusedError, UnknownError.
        """
        found = {record.name: slurm_nodes.read(record) for record in self.client.nodes(deadline_s)}
        for node in found.values():
            if node.mark is not None and node.mark.generation > fence.generation:
                newer = node.mark.generation
                raise RefusedError(f"{node.name}: written by generation {newer}, ours is {fence.generation}")
        known = slurm_nodes.find(found, proposal.node)
        return replace(proposal, node=known.name) if known is not None else proposal

    def _write(self, node: SlurmNode, wanted: reason.Mark | None, turn: Turn) -> None:
        change = ("state=drain", f"reason={wanted.text()}") if wanted else ("state=undrain",)
        send(self.client, turn, "scontrol", "update", f"nodename={node.name}", *change)

    def _proof(self, action: Action, before: SlurmNode, turn: Turn) -> str:
        """Look after the change. Raises AmbiguousError when it cannot be seen."""
        try:
            look = self.look(action, turn.left_s())
        except UnknownError as error:
            raise AmbiguousError(
                f"{before.name}: scontrol said yes, the look after it failed: {error}"
            ) from error
        if look.state != "done":
            raise AmbiguousError(f"{before.name}: scontrol said yes, yet {look.detail}")
        return look.detail

    def _node(self, name: str, deadline_s: float) -> SlurmNode | None:
        found = {node.name: slurm_nodes.read(node) for node in self.client.nodes(deadline_s)}
        return slurm_nodes.find(found, name)


def _judged(node: SlurmNode, action: Action) -> Look:
    judge = _look_hold if action.proposal.kind == "hold" else _look_release
    return judge(node, action.proposal.incident)


def _wanted(node: SlurmNode, action: Action, fence: Fence) -> reason.Mark | None:
    """Return the mark that the node shall have, None for none. Raises RefusedError."""
    proposal, mark = action.proposal, node.mark
    try:
        if mark is None:
            return reason.make(proposal.fault_class, proposal.reason, proposal.incident, fence.generation)
        if proposal.kind == "release":
            return mark.without(proposal.incident, fence.generation)
        return mark.with_incident(proposal.incident, fence.generation)
    except ValueError as error:
        raise RefusedError(str(error)) from error


def _look_hold(node: SlurmNode, incident: str) -> Look:
    if node.mark is None:
        state = "foreign" if node.hold == "foreign" or node.reason else "absent"
        return Look(state=state, detail=f"{node.name} is not held by us: {_held(node)}", token=node.token)  # type: ignore[arg-type]
    if incident in node.mark.incidents:
        return Look(state="done", detail=f"{node.name} is drained: {node.reason}", token=node.token)
    return Look(
        state="absent", detail=f"{node.name} is drained by us, for others: {node.reason}", token=node.token
    )


def _look_release(node: SlurmNode, incident: str) -> Look:
    if node.hold == "none":
        return Look(state="done", detail=f"{node.name} is not drained: {_held(node)}", token=node.token)
    if node.mark is None:
        return Look(state="foreign", detail=f"{node.name} is not ours: {_held(node)}", token=node.token)
    if incident in node.mark.incidents:
        return Look(state="absent", detail=f"{node.name} is drained by us: {node.reason}", token=node.token)
    return Look(state="done", detail=f"{node.name} stays drained for others: {node.reason}", token=node.token)


def _held(node: SlurmNode) -> str:
    """What stands on the node, in Slurm's words."""
    by = f" (by {node.reason_by})" if node.reason_by else ""
    return f"{'+'.join(sorted(node.flags)).lower()}{f', {node.reason}' if node.reason else ''}{by}"
