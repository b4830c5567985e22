"""Slurm for the contract battery: a real one, whose nodes are called n1 to n4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.slurm_actions import Recorder, actuator, programs
from integration.slurm_lab import SlurmLab, slurm_lab

from gpuvigil_collector.action import Action, Fence, Kind
from gpuvigil_collector.actuators.slurm import SlurmActuator
from gpuvigil_collector.slurm import reason


class SlurmBench:
    """A real Slurm; what was sent to it is kept, and an effect is one whose mark a node bears."""

    kind: Kind = "hold"

    def __init__(self, lab: SlurmLab, directory: Path) -> None:
        self.lab, self.directory, self.recorder = lab, directory, Recorder()
        self.actuator = actuator(lab, self.recorder)
        self.had: list[tuple[str, int]] = []
        real = self.actuator.apply

        def apply(asked: Action, fence: Fence) -> str:
            sent = len(self.recorder.changes)
            try:
                return real(asked, fence)
            finally:
                if len(self.recorder.changes) > sent and self._marked(asked):
                    self.had.append((asked.proposal.id, fence.generation))

        self.actuator = Both(self.actuator, apply)

    def _marked(self, asked: Action) -> bool:
        mark = reason.parse(self.lab.node(asked.proposal.node)["reason"])
        return mark is not None and asked.proposal.incident in mark.incidents

    def effects(self):
        return list(self.had)

    def contacts(self):
        return len(self.recorder.changes)

    def take(self, node):
        self.lab.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=somebody")

    def taken_untouched(self, node):
        seen = self.lab.node(node)
        return seen["reason"] == "somebody" and "DRAIN" in seen["state_flags"]

    def lose_answer(self):
        said = 'case $1 in --*) exec $real "$@";; esac\n$real "$@"; sleep 60'
        self.actuator.slurm.client.folder = programs(self.directory, said, "scontrol")

    def break_down(self):
        self.actuator.slurm.client.folder = programs(
            self.directory, "echo nonsense", "sinfo", "squeue", "scontrol"
        )


class Both:
    """The product's actuator with an `apply` that is watched."""

    def __init__(self, slurm: SlurmActuator, apply: Callable[[Action, Fence], str]) -> None:
        self.slurm, self.apply, self.look = slurm, apply, slurm.look
        self.name, self.kinds = slurm.name, slurm.kinds


@contextmanager
def slurm(directory: Path) -> Iterator[SlurmBench]:
    """Slurm of its own for one test."""
    with slurm_lab(prefix="n") as lab:
        yield SlurmBench(lab, directory)
