"""The fleet that repairs itself on a real Slurm (slurm_lab.py)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration import stack
from integration.repair_base import INTERVAL, STEP_S, Fleet
from integration.slurm_lab import SlurmLab

SCRIPT = """\
export PYTHONPATH={path} GPUVIGIL_SOCKET={folder}/hook-$SLURMD_NODENAME.sock
exec {python} {folder}/job.py {folder} {interval} {step_s} $SLURMD_NODENAME
"""


@dataclass
class RepairFleet(Fleet):
    """The fleet on a real Slurm."""

    slurm: SlurmLab = field(kw_only=True)
    kind: str = "slurm"

    def __post_init__(self) -> None:
        self.nodes = self.slurm.nodes
        self.environment = self.environment | {"SLURM_CONF": str(self.slurm.conf)}
        super().__post_init__()

    def scheduler(self) -> str:
        """Reads twice as often as the shipped setting."""
        key = f'verdict_key = "{self.verdicts}/key.pem"\n' if self.verdicts is not None else ""
        return f'[slurm]\ninterval = "1s"\ndeadline = "15s"\n{key}'

    def submit(self) -> str:
        """A batch job."""
        path = ":".join(str(stack.ROOT / source) for source in stack.SOURCES)
        script = SCRIPT.format(
            path=path, folder=self.folder, python=sys.executable, interval=INTERVAL, step_s=STEP_S
        )
        return self.slurm.submit(
            script, "--gres=gpu:8", f"--output={self.folder}/job-%j.out", "--open-mode=append"
        )

    def where(self) -> str:
        """The node that runs the job, by Slurm's word; "" while it runs nowhere."""
        job = self.slurm.job(self.job)
        return str(job["nodes"]) if job["job_state"] == "RUNNING" else ""

    def node_says(self, node: str) -> tuple[str, str]:
        """State and reason of a node, by Slurm's word."""
        said = self.slurm.run("sinfo", "-h", "-N", "-p", "gpu", "-n", node, "-o", "%T|%E")
        state, _, reason = said.partition("|")
        return state, "" if reason == "none" else reason

    def held(self) -> bool:
        """Our drain."""
        return self.node_says("gn1")[1].startswith("gpuvigil: ")

    def told(self) -> str:
        """sinfo and squeue."""
        return f"{self.slurm.run('sinfo', '-N', '-o', '%N %T %E')}\n{self.slurm.run('squeue')}"


@contextlib.contextmanager
def repair_fleet(slurm: SlurmLab, folder: Path, **more: Any) -> Iterator[RepairFleet]:
    """Make a fleet with fresh state; its processes end with the block."""
    fleet = RepairFleet(folder, slurm=slurm, **more)
    try:
        yield fleet
    finally:
        fleet.stop()
