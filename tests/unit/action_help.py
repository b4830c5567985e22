"""Actions, a lease and an actuator made of a dictionary, for tests of the executor."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from unit import repair_world

from gpuvigil_collector.action import Action, AmbiguousError, Fence, Look, Proposal, RefusedError
from gpuvigil_collector.action_store import ActionStore
from gpuvigil_collector.attempt import Attempt
from gpuvigil_collector.execute import Executor
from gpuvigil_collector.policy import Step
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.needs import Scenery
from gpuvigil_protos.settings import Seconds


def proposal(name="a1", *, kind="hold", node="n1", **more):
    given = {"case": "c1", "incident": "i1", "fault_class": "gpu_lost", "playbook": "gpu_lost", "step": 1}
    return Proposal(**(given | {"id": name, "kind": kind, "node": node, "reason": "a test"} | more))


def action(name="a1", *, state="intended", generation=7, decided_ns=None, domain="", **more):
    now_ns = time.time_ns() if decided_ns is None else decided_ns
    return Action(
        proposal=proposal(name, **more),
        state=state,
        generation=generation,
        decided_ns=now_ns,
        changed_ns=now_ns,
        domain=domain,
    )


@dataclass
class FakeLease:
    """A lease whose end the test decides."""

    generation: int = 7
    ours: bool = True
    fault: str = ""

    def fence(self):
        until_ns = time.time_ns() + 20_000_000_000
        return Fence(holder="me", generation=self.generation, until_ns=until_ns) if self.ours else None

    def state(self):
        return "ours" if self.ours else "held by another"


@dataclass
class FakeActuator:
    """Has its effects in a dictionary; `answers` are raised or returned by the next applies."""

    name: str = "fake"
    kinds: frozenset[str] = frozenset({"hold", "release", "reboot", "notify"})
    effects: dict[str, str] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)
    answers: list[object] = field(default_factory=list)
    looks: list[object] = field(default_factory=list)
    before_apply: object = None

    def look(self, asked):
        if self.looks:
            told = self.looks.pop(0)
            if isinstance(told, Exception):
                raise told
            return Look(state=told)
        owner = self.effects.get(asked.proposal.node)
        return Look(state="absent" if owner is None else "done" if owner == asked.proposal.id else "foreign")

    def apply(self, asked, fence):
        if self.before_apply:
            self.before_apply(asked)
        self.applied.append(asked.proposal.id)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, RefusedError):
            raise answer
        if answer != "lost":
            self.effects[asked.proposal.node] = asked.proposal.id
        if answer in ("lost", "unanswered"):
            raise AmbiguousError("no answer")
        if isinstance(answer, Exception):
            raise answer
        return "done"


class Steady:
    """A clock of the test's."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class World:
    """A store, a lease, an actuator and the executor, whose steps the test takes."""

    def __init__(self, directory, actuator=None, paused=lambda: "", store=None):
        self.store = store or ActionStore(directory)
        self.lease, self.fake, self.steady = FakeLease(), actuator or FakeActuator(), Steady()
        attempt = Attempt(store=self.store, lease=self.lease, paused=paused, steady_s=self.steady)
        self.executor = Executor(self.store, [self.fake], attempt)

    def step(self, times=1, *, after_s=0.0):
        for _ in range(times):
            self.steady.now += after_s
            self.executor.step(0)

    def state(self, name="a1"):
        found = self.store.get(name)
        return found.state if found else None

    def told(self):
        return [(one.action.proposal.id, one.action.state) for one in self.executor.results()]


def made_by_the_desk(told, fleet):
    """The action that the hands of repair make of a verdict about a hold."""
    hands = repair_world.World().desk.hands
    hands.judge = lambda *_: told
    hands.look_at(Scenery(now_ns=time.time_ns(), open={}, state=fleet))
    case = Case(
        id="c1", incident="i1", fingerprint="f", fault_class="gpu_lost", node="n1", target="n1/gpu:GPU-1",
        cause="it broke", playbook="reboot_and_validate", opened_ns=1,
    )  # fmt: skip
    hands.effect(case, Step(do="hold", within=Seconds(120)), "")
    (made,) = hands.actions.values()
    return made
