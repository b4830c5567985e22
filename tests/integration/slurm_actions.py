"""Actions, leases and clients for tests of the Slurm actuator."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from integration.slurm_lab import SlurmLab

from gpuvigil_collector import process
from gpuvigil_collector.action import Action, Fence, Kind, Proposal
from gpuvigil_collector.actuators.slurm import SlurmActuator
from gpuvigil_collector.slurm.client import SlurmClient
from gpuvigil_collector.slurm.settings import SlurmSettings


def action(
    kind: Kind,
    node: str = "gn1",
    *,
    job: str = "",
    incident: str = "inc-7",
    before: str = "",
    state: Any = "intended",
    why: str = "gpu 3 fell off the bus",
) -> Action:
    """An action as the executor hands it over."""
    proposal = Proposal(
        id=f"{incident}-{kind}", case="c", incident=incident, fault_class="gpu_lost", playbook="p", step=1,
        kind=kind, node=node, job=job, reason=why,
    )  # fmt: skip
    return Action(proposal=proposal, state=state, before=before)


def fence(generation: int = 3, left_s: float = 120.0) -> Fence:
    """A lease that is ours for left_s more seconds."""
    return Fence(holder="c1", generation=generation, until_ns=time.time_ns() + int(left_s * 1e9))


class Recorder:
    """Runs Slurm's programs for real and keeps what was run; `before` is called ahead of each."""

    def __init__(self, before: Callable[[tuple[str, ...]], None] = lambda _: None) -> None:
        self.argv: list[tuple[str, ...]] = []
        self.before = before

    def __call__(self, argv: tuple[str, ...], **keywords: Any) -> process.Ran:
        named = (Path(argv[0]).name, *argv[1:])
        self.before(named)
        self.argv.append(named)
        return process.run(argv, **keywords)

    @property
    def changes(self) -> list[tuple[str, ...]]:
        """The commands that change something."""
        return [
            a
            for a in self.argv
            if a[:2] in (("scontrol", "update"), ("scontrol", "requeue")) or a[0] == "scancel"
        ]


def client_env(lab: SlurmLab) -> Mapping[str, str]:
    """What a client program needs of the environment, and no more."""
    return {name: lab.env[name] for name in ("SLURM_CONF",)}


def actuator(lab: SlurmLab, recorder: Recorder | None = None, **settings: Any) -> SlurmActuator:
    """The product's actuator over the lab."""
    client = SlurmClient(environment=client_env(lab), run=recorder or process.run)
    return SlurmActuator(settings=SlurmSettings(**settings), client=client)


PROGRAMS = ("scontrol", "sinfo", "squeue", "scancel")


def programs(folder: Path, body: str, *replaced: str) -> str:
    """Return a folder with Slurm's programs; `replaced` are a script instead; $real is the real one."""
    for name in PROGRAMS:
        real = shutil.which(name)
        assert real is not None
        if name not in replaced:
            (folder / name).symlink_to(real)
            continue
        (folder / name).write_text(
            f'#!/bin/sh\nreal={real}\ncase $1 in --v*) exec $real "$@";; esac\n{body}\n'
        )
        (folder / name).chmod(0o755)
    return str(folder)
