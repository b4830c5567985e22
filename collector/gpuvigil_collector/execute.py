"""The executor: the one place that has effects. It takes allowed actions and carries them out, one at a time.

`submit` has the intent on disk before it returns, in the caller's thread; all else happens in the executor's
own. It never calls back: every transition is told by `results` until `told` takes it.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Unpack

from gpuvigil_collector.action import (
    ENDED,
    Action,
    ActionState,
    Actuator,
    Fence,
    Kind,
    Look,
    RefusedError,
)
from gpuvigil_collector.action_store import ActionStore, Told
from gpuvigil_collector.actuators import ACTUATORS, ToolFields, Tools
from gpuvigil_collector.actuators.supervisor import SupervisorActuator
from gpuvigil_collector.attempt import SETTLE, Attempt, Bounded
from gpuvigil_collector.tended import Tended

_QUEUE_MAX: Final = 64
_LOOK_FIRST_S: Final = 0.5
_LOOK_MOST_S: Final = 30.0
_IDLE_S: Final = 1.0
_TEND_S: Final = 5.0
_AGAIN: Final[frozenset[ActionState]] = frozenset({"proposed", "awaiting", "denied", "would"})


@dataclass(slots=True)
class _Watched:
    """An action whose effect is looked for. Times of the steady clock, s; absent_s: looks say so since."""

    action: Action
    since_s: float
    due_s: float
    wait_s: float = _LOOK_FIRST_S
    absent_s: float | None = None


def actuators_of(tools: Tools) -> list[Actuator]:
    """Make every actuator that is configured, in the table's order."""
    return [actuator for make in ACTUATORS.values() for actuator in make(tools)]


class Executor:
    """Runs until `stop`. `on_end` gets the bug that ended its thread, or None."""

    def __init__(
        self,
        store: ActionStore,
        actuators: Iterable[Actuator],
        attempt: Attempt,
        *,
        on_end: Callable[[BaseException | None], None] = lambda _: None,
    ) -> None:
        self._store, self._attempt, self._on_end = store, attempt, on_end
        self._actuators = tuple(actuators)
        self._by_name = {actuator.name: actuator for actuator in self._actuators}
        self._queue: queue.Queue[Action] = queue.Queue(_QUEUE_MAX)
        self._watched: dict[str, _Watched] = {}
        self._unwritten: dict[str, Action] = {}
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._watching = (
            threading.Lock()
        )  # of _watched and _unwritten; never held while anything is looked at
        self._thread = threading.Thread(target=self._main, name="executor", daemon=True)
        tended = [actuator for actuator in self._actuators if isinstance(actuator, Tended)]
        self._tender = threading.Thread(
            target=self._tend, args=(tended,), name="executor-tender", daemon=True
        )

    @property
    def kinds(self) -> frozenset[Kind]:
        """What it can do with the actuators that it has."""
        return frozenset(kind for actuator in self._actuators for kind in actuator.kinds)

    def start(self) -> None:
        """Take up what the last run left, then what is submitted."""
        self._thread.start()
        self._tender.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask for the end after the step in progress; False when it did not end in time."""
        self._stopping.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, action: Action) -> Action:
        """Write the action down and, when it is intended, have it carried out; return it as it is on record.

        One id is begun once: what was begun or ended stays as it is. Where nothing can be written, or too
        much waits, it comes back failed, was not begun, and may be proposed anew.
        """
        known = self._store.get(action.proposal.id)
        if known is not None and (known.state not in _AGAIN or known.state == action.state):
            return known
        if action.state != "intended":
            self._store.write(action)
            return action
        if self._queue.full() or not self._ready.is_set():
            why = f"{_QUEUE_MAX} actions wait already" if self._queue.full() else "what was open is not read"
            return replace(action, state="failed", outcome=f"not begun: {why}")
        chosen = first_of_kind(action, self._actuators)
        action = replace(action, actuator=chosen.name if chosen else "", outcome="")
        if not self._store.write(action):
            return replace(action, state="failed", outcome=f"not begun: {self._store.fault}")
        self._queue.put_nowait(action)
        return action

    def begin_job(self, job: str, node: str, action: str, fence: Fence, avoid: frozenset[str]) -> str:
        """Have the agents start a job that an operator asked for, in the caller's thread.

        Raises RefusedError, AmbiguousError.
        """
        for actuator in self._actuators:
            if isinstance(actuator, SupervisorActuator):
                return actuator.begin(job, node, action, fence, avoid)
        raise RefusedError("agents supervise no job here: [actuators.supervised] is empty")

    def results(self) -> list[Told]:
        """Return the transitions that nobody has taken yet, oldest first, also those before a crash."""
        return self._store.untold()

    def told(self, sequence: int) -> None:
        """Forget the transitions up to this one: they are in the journal."""
        self._store.told(sequence)

    def settle(self, action_id: str, state: Literal["done", "failed"], outcome: str) -> Action:
        """End an ambiguous action by a person's word; it is looked at no more. Any thread may call.

        Raises KeyError where no look at an ambiguous action of that id is due.
        """
        with self._watching:
            watched = self._watched.get(action_id)
            if watched is None or watched.action.state != "ambiguous":
                raise KeyError(action_id)
            del self._watched[action_id]
            settled = self._attempt.become(watched.action, state, outcome)
        self._keep(settled)
        return settled

    def faults(self) -> list[str]:
        """Sentences on what is wrong now."""
        lost = [f"{len(self._unwritten)} results wait for a disk that fails"] if self._unwritten else []
        return [fault for fault in (self._store.fault, self._attempt.lease.fault) if fault] + [
            *self._attempt.faults,
            *lost,
        ]

    def _main(self) -> None:
        try:
            while not self.resume() and not self._stopping.wait(_IDLE_S):
                continue
            while not self._stopping.is_set():
                self.step(_IDLE_S)
        finally:
            self._on_end(sys.exc_info()[1])

    def _tend(self, tended: Sequence[Tended]) -> None:
        """Beside the actions: what an actuator keeps up may wait long for a node that does not answer."""
        while tended and not self._stopping.wait(_TEND_S):
            for one in tended:
                self._attempt.tend(one)

    def step(self, wait_s: float) -> None:
        """Carry out one waiting action, waiting for it up to `wait_s`, and look at those that are due."""
        try:
            action = self._queue.get(timeout=max(min(wait_s, self._until_due()), 0.001))
        except queue.Empty:
            pass
        else:
            self._keep(self._attempt.begin(action, self._by_name.get(action.actuator)))
        with self._watching:
            due = [one for one in self._watched.values() if one.due_s <= self._attempt.steady_s()]
        for watched in due:
            if not self._stopping.is_set():
                self._look(watched)
        with self._watching:
            for action in list(self._unwritten.values()):
                if self._store.write(action):
                    del self._unwritten[action.proposal.id]

    def resume(self) -> bool:
        """Take up what the last run left; False while that cannot be read: then nothing is taken."""
        left = self._store.unended()
        if left is None:
            return False
        self._ready.set()  # from here on what is written as intended is ours
        for action in left:
            if action.proposal.kind == "checkpoint":
                continue  # asked of the job by the desk of saves, which asks anew
            self._keep(self._attempt.resume(action, self._by_name.get(action.actuator)))
        return True

    def _keep(self, action: Action) -> None:
        """Go on looking for an effect that has not ended; keep an end that the disk did not take."""
        now_s = self._attempt.steady_s()
        with self._watching:
            if action.state not in ENDED:
                self._watched[action.proposal.id] = _Watched(action, now_s, now_s)
                return
            kept = self._store.get(action.proposal.id)
            if kept is None or kept.state != action.state:
                self._unwritten[action.proposal.id] = action

    def _look(self, watched: _Watched) -> None:
        asked, lasted_s = watched.action.proposal, self._attempt.steady_s() - watched.since_s
        seen = self._attempt.seen(watched.action, self._by_name.get(watched.action.actuator))
        with self._watching:
            if asked.id not in self._watched:
                return  # a person settled it meanwhile
            settled = lasted_s >= SETTLE * asked.deadline_s or self._never_arrived(watched, seen)
            late = lasted_s >= asked.deadline_s
            watched.action = self._attempt.conclude(watched.action, seen, late=late, settled=settled)
            if watched.action.state in ENDED:
                del self._watched[asked.id]
        if watched.action.state in ENDED:
            self._keep(watched.action)
            return
        watched.due_s = self._attempt.steady_s() + watched.wait_s
        watched.wait_s = min(watched.wait_s * 1.5, _LOOK_MOST_S)

    def _never_arrived(self, watched: _Watched, seen: Look) -> bool:
        """Whether an effect that nobody answered for has been absent longer than it could take to arrive."""
        now_s = self._attempt.steady_s()
        if seen.partly or seen.state not in ("absent", "foreign"):
            watched.absent_s = None
        elif watched.absent_s is None:
            watched.absent_s = now_s
        actuator = self._by_name.get(watched.action.actuator)
        if watched.absent_s is None or watched.action.answered or not isinstance(actuator, Bounded):
            return False
        return now_s - watched.absent_s >= actuator.arrives_s

    def _until_due(self) -> float:
        with self._watching:
            due_s = min((one.due_s for one in self._watched.values()), default=float("inf"))
        return due_s - self._attempt.steady_s()


def first_of_kind(action: Action, actuators: tuple[Actuator, ...]) -> Actuator | None:
    """Choose the first actuator that has the action's kind."""
    return next((one for one in actuators if action.proposal.kind in one.kinds), None)


def make(
    store: ActionStore,
    attempt: Attempt,
    on_end: Callable[[BaseException | None], None],
    **tools: Unpack[ToolFields],
) -> Executor:
    """Make the executor with every actuator that `tools` (the fields of actuators.Tools) ask for."""
    return Executor(store, actuators_of(Tools(**tools)), attempt, on_end=on_end)
