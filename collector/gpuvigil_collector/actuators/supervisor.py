"""The agents as supervisors, on hosts with no scheduler: hold a node, stop a job there, start it elsewhere.

The site's config names each job and the nodes on which it may run; each of these nodes names the job's
command in its agent's own config. Which action started a job is kept on the node, so a look can tell ours
from others'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, TypeVar

import msgspec

from gpuvigil_collector.action import (
    Action,
    AgentCall,
    AmbiguousError,
    Fence,
    Kind,
    Look,
    RefusedError,
)
from gpuvigil_collector.actuators.tools import Tools, names
from gpuvigil_collector.process import within

_LOOK_S: Final = 10.0
_OURS: Final = "gpuvigil"


class _Hold(msgspec.Struct, frozen=True):
    incident: str
    by: str = _OURS
    reason: str = ""


class _Node(msgspec.Struct, frozen=True):
    boot_id: str
    held: list[_Hold]
    paused: str
    ours: bool


class _Job(msgspec.Struct, frozen=True):
    state: str
    action: str = ""
    generation: int = 0
    attempt: int = 0
    status: int | None = None

    @property
    def lives(self) -> bool:
        """True while any process of it may run."""
        return self.state not in ("none", "ended")


_Told = TypeVar("_Told", _Node, _Job)


class SupervisorActuator:
    """jobs: where each may run, best first. dead: a second path agrees that a node is gone."""

    name = "supervisor"
    kinds: frozenset[Kind] = frozenset({"hold", "release", "stop_job", "move_job"})

    def __init__(
        self,
        call: AgentCall,
        jobs: Mapping[str, Sequence[str]],
        dead: Callable[[str], bool] = lambda _node: False,
    ) -> None:
        self._call, self._jobs, self._dead = call, jobs, dead

    def look(self, action: Action) -> Look:
        """Ask the nodes; what does not answer is unknown."""
        proposal = action.proposal
        try:
            names(action)
            if proposal.kind in ("hold", "release"):
                return _judge_hold(action, self._node(proposal.node, proposal.incident))
            if proposal.kind == "stop_job":
                found = self._job(proposal.node, proposal.job)
                state: Literal["absent", "done"] = "absent" if found.lives else "done"
                token = f"{found.generation}/{found.attempt}"
                return Look(state=state, detail=f"{proposal.job}: {found.state}", token=token)
            return self._look_moved(action)
        except (RefusedError, AmbiguousError) as error:
            return Look(state="unknown", detail=str(error)[:200])

    def apply(self, action: Action, fence: Fence) -> str:
        """Have the effect. Raises RefusedError, AmbiguousError."""
        proposal = action.proposal
        names(action)
        seconds = within(fence, proposal.deadline_s, time.time_ns())
        if proposal.kind == "move_job":
            return self._move(action, fence)
        arguments = {"generation": str(fence.generation)}
        if proposal.kind == "stop_job":
            arguments |= {"job": proposal.job}
            return self._do(proposal.node, "supervise_stop", arguments, seconds)
        found = self._node(proposal.node, proposal.incident)
        if not found.ours and found.held and found.held[0].by != _OURS:
            raise RefusedError(f"{proposal.node} is held by {found.held[0].by}: {found.held[0].reason[:100]}")
        arguments |= {"incident": proposal.incident, "action": proposal.id}
        if proposal.kind == "release":
            return self._do(proposal.node, "unhold", arguments, seconds)
        arguments["reason"] = f"{_OURS}: {proposal.reason}"[:200]
        return self._do(proposal.node, "hold", arguments, seconds)

    # --- a job that an operator starts
    def begin(self, job: str, node: str, action: str, fence: Fence, avoid: frozenset[str]) -> str:
        """Start a job that runs nowhere, on `node`, or where that is "" on the best that can take it.

        Every node that may run it must answer first: it could run there. Raises RefusedError, AmbiguousError.
        """
        if node and node not in self._nodes(job):
            raise RefusedError(f"{job} may run on {', '.join(self._nodes(job))[:200]}, not on {node[:64]}")
        for place in self._nodes(job):
            self._job(place, job)
        attempt, places = self._places(job, "")
        fit = [place for place in places if (node or place) == place and place not in avoid]
        if not fit:
            raise RefusedError(f"{node or 'every node'} is held, paused or under maintenance")
        arguments = {
            "job": job, "action": action, "generation": str(fence.generation), "attempt": str(attempt + 1),
        }  # fmt: skip
        seconds = within(fence, _LOOK_S, time.time_ns())
        return f"{fit[0]}: {self._do(fit[0], 'supervise_start', arguments, seconds)}"

    # --- a job that moves
    def _look_moved(self, action: Action) -> Look:
        proposal = action.proposal
        unknown = []
        for node in self._nodes(proposal.job):
            try:
                found = self._job(node, proposal.job)
            except (RefusedError, AmbiguousError) as error:
                if node != proposal.node or not self._dead(node):
                    unknown.append(f"{node}: {error}")
                continue
            if found.lives and node != proposal.node:
                if found.action == proposal.id:
                    return Look(state="done", detail=f"runs on {node}", token=node)
                return Look(state="foreign", detail=f"runs on {node}, by {found.action[:60]}", token=node)
            if found.action == proposal.id:
                return Look(state="done", detail=f"ran on {node} and ended: {found.status}", token=node)
        if unknown:
            return Look(state="unknown", detail="; ".join(unknown)[:200])
        return Look(state="absent", detail=f"{proposal.job} runs on no other node")

    def _move(self, action: Action, fence: Fence) -> str:
        """Find where to, stop, start: in this order, so that a job is not stopped for nothing."""
        proposal = action.proposal
        before = self._look_moved(action)
        if before.state == "done":
            return before.detail
        if before.state == "foreign":
            raise RefusedError(before.detail)
        attempt, places = self._places(proposal.job, proposal.node)
        attempt = max(attempt, self._stop_there(action, fence))
        said = []
        for node in places:
            arguments = {
                "job": proposal.job, "action": proposal.id, "generation": str(fence.generation),
                "attempt": str(attempt + 1),
            }  # fmt: skip
            try:
                seconds = within(
                    fence, proposal.deadline_s, time.time_ns()
                )  # again: the stop may have taken its grace
                return f"{node}: {self._do(node, 'supervise_start', arguments, seconds)}"
            except RefusedError as error:
                said.append(f"{node}: {error}")
        raise RefusedError(f"{proposal.job} was stopped and no node takes it: {'; '.join(said)[:300]}")

    def _places(self, job: str, bad: str) -> tuple[int, list[str]]:
        """Return the newest attempt and the nodes that can take the job now. Raises RefusedError for none."""
        attempt, places, why = 0, [], []
        for node in self._nodes(job):
            if node == bad:
                continue
            try:
                state, found = self._node(node, ""), self._job(node, job)
            except (RefusedError, AmbiguousError) as error:
                why.append(f"{node}: {error}")
                continue
            attempt = max(attempt, found.attempt)
            if found.lives:
                raise RefusedError(f"{job} runs on {node} already")
            if state.held or state.paused:
                why.append(f"{node}: {'held' if state.held else 'paused'}")
            else:
                places.append(node)
        if not places:
            raise RefusedError(
                f"no node can take {job}: {'; '.join(why)[:300] or 'its config names no other'}"
            )
        return attempt, places

    def _stop_there(self, action: Action, fence: Fence) -> int:
        """Stop the job where the fault is; return its attempt. A node that is dead is left alone."""
        proposal = action.proposal
        if proposal.node not in self._nodes(proposal.job):
            return 0
        try:
            found = self._job(proposal.node, proposal.job)
        except (RefusedError, AmbiguousError) as error:
            if self._dead(proposal.node):
                return 0
            raise RefusedError(
                f"whether {proposal.job} still runs on {proposal.node} is unknown: {error}"
            ) from None
        if found.lives:
            arguments = {"job": proposal.job, "generation": str(fence.generation)}
            self._do(
                proposal.node, "supervise_stop", arguments, within(fence, proposal.deadline_s, time.time_ns())
            )
        return found.attempt

    # --- words with an agent
    def _nodes(self, job: str) -> Sequence[str]:
        found = self._jobs.get(job)
        if not found:
            raise RefusedError(f"job {job[:128]} is not one that this site's agents supervise")
        return found

    def _node(self, node: str, incident: str) -> _Node:
        return self._read(node, "boot", {"incident": incident}, _Node)

    def _job(self, node: str, job: str) -> _Job:
        return self._read(node, "supervise_look", {"job": job}, _Job)

    def _read(self, node: str, verb: str, arguments: Mapping[str, str], kind: type[_Told]) -> _Told:
        text = self._do(node, verb, arguments, _LOOK_S)
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise AmbiguousError(f"{node}: its answer to {verb} is not understood") from None

    def _do(self, node: str, verb: str, arguments: Mapping[str, str], seconds: float) -> str:
        answer = self._call(node, verb, arguments, seconds)
        if not answer.accepted:
            raise RefusedError(answer.outcome[:300])
        return answer.outcome


def _judge_hold(action: Action, found: _Node) -> Look:
    foreign = next((hold for hold in found.held if hold.by != _OURS), None)
    held = f"held for {found.held[0].incident[:60]}" if found.held else "not held"
    wanted = action.proposal.kind == "hold"
    if found.ours == wanted and (wanted or foreign is None):
        return Look(state="done", detail=held, token=found.boot_id)
    if foreign is not None and not found.ours:
        return Look(state="foreign", detail=f"held by {foreign.by}: {foreign.reason}", token=found.boot_id)
    return Look(state="absent", detail=held, token=found.boot_id)


def make(tools: Tools) -> Iterable[SupervisorActuator]:
    """Make it where the settings ask for it."""
    jobs = tools.settings.supervised
    return [SupervisorActuator(tools.agent, jobs)] if tools.agent is not None and jobs else []
