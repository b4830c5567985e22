"""A collector's executor in a process of its own, to be killed or stopped (tests R2 and R3).

    executor_child.py repair DIRECTORY KILL_AT ACTION S  one action of S seconds; dies by SIGKILL at its
                                                         KILL_AT-th moment, at -1 while the effect comes
    executor_child.py lead DIRECTORY SHARED     holds the lease when it can, marks node after node

The moments of `repair` are right before and right after each transition is on disk.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from unit.action_help import FakeLease, action

from gpuvigil_collector.action_store import ActionStore
from gpuvigil_collector.actuator_config import Command
from gpuvigil_collector.actuators.command import CommandActuator
from gpuvigil_collector.attempt import Attempt
from gpuvigil_collector.execute import Executor
from gpuvigil_collector.lease_file import SqliteLease

DEADLINE_S = 1.0
LEASE_S = 2.0


class Dying(ActionStore):
    """A store whose process is killed at one moment."""

    kill_at = 0
    moment = 0

    def _at(self):
        self.moment += 1
        if self.moment == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, written):
        self._at()
        ok = super().write(written)
        if self.kill_at == -1 and written.state == "issued":
            threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGKILL)).start()
        self._at()
        return ok


def scripts(folder: Path) -> CommandActuator:
    """The actuator over the two scripts in `folder`."""
    kinds = ("reboot",)
    apply, look = (str(folder / "apply"), "{node}"), (str(folder / "look"), "{node}")
    return CommandActuator(Command(name="test", kinds=kinds, apply=apply, look=look))


def repair(directory: Path, kill_at: int, name: str, deadline_s: float) -> None:
    """Take up what is open and carry out one action; print what became of all, and the moments there were."""
    store = Dying(directory / "state")
    store.kill_at = kill_at
    attempt = Attempt(store=store, lease=FakeLease(), paused=lambda: "")
    executor = Executor(store, [scripts(directory)], attempt)
    assert executor.resume()
    while executor._watched:
        executor.step(0.05)
    executor.submit(action(name, kind="reboot", deadline_s=deadline_s))
    while store.get(name).state not in ("done", "failed"):
        executor.step(0.05)
    told = [f"{one.action.proposal.id}:{one.action.state}" for one in executor.results()]
    print(store.moment, *told, flush=True)


def lead(directory: Path, shared: Path) -> None:
    """Mark n0, n1, ... one after another while the lease is ours, each node that has no mark yet."""
    store = ActionStore(directory)
    lease = SqliteLease(shared / "lease.sqlite", lease_s=LEASE_S, holder=directory.name)
    executor = Executor(store, [scripts(shared)], Attempt(store=store, lease=lease, paused=lambda: ""))
    lease.start()
    assert executor.resume()
    number = 0
    while os.getppid() != 1:
        fence = lease.fence()
        if fence is None:
            time.sleep(0.02)
            continue
        name = f"{directory.name}-{fence.generation}-{number}"
        one = action(
            name, kind="reboot", node=f"n{number}", deadline_s=DEADLINE_S, generation=fence.generation
        )
        executor.submit(one)
        while (found := store.get(name)) is None or found.state not in ("done", "failed"):
            executor.step(0.02)
        if found.state == "done":
            number += 1


if __name__ == "__main__":
    if sys.argv[1] == "repair":
        repair(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
    else:
        lead(Path(sys.argv[2]), Path(sys.argv[3]))
