"""Running saving_job.py under `gpuvigil run` and torchrun, and reading what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from integration import stack

HERE = Path(__file__).parent


class Training:
    """One supervised job; `losses` is what rank 0 wrote down, step by step, as often as it did it."""

    def __init__(self, folder: Path, ranks: int = 2, steps: int = 60, socket: str = "") -> None:
        self.folder, self.ranks, self.steps, self.socket = folder, ranks, steps, socket
        self.directory, self.file = folder / "checkpoints", folder / "losses.txt"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str, **more: str) -> subprocess.Popen[str]:
        """Start it; `more` goes into its environment."""
        run = [sys.executable, "-m", "gpuvigil.cli", "run", "--job", "saving", "--backoff", "0.2",
               "--checkpoints", str(self.directory), *options, "--"]  # fmt: skip
        arguments = map(str, (self.directory, self.steps, self.file))
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1",
                   f"--nproc-per-node={self.ranks}", "--max-restarts=0", "--monitor-interval=0.1",
                   "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1",
                   str(HERE / "saving_job.py"), *arguments]  # fmt: skip
        env = stack.environment() | {
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "HOME": str(self.folder),
        }
        env |= {"GPUVIGIL_SOCKET": self.socket or str(self.folder / "nobody.sock")} | more
        log = (self.folder / "job.log").open("a")
        self.process = subprocess.Popen([*run, *command], env=env, stdout=log, stderr=log, text=True)
        return self.process

    @property
    def log(self) -> str:
        """What launcher and ranks said."""
        return (self.folder / "job.log").read_text()

    @property
    def losses(self) -> list[tuple[int, str]]:
        """(step, loss to the last bit), in the order in which they were made."""
        if not self.file.exists():
            return []
        rows = (line.split() for line in self.file.read_text().splitlines())
        return [(int(row[0]), row[1]) for row in rows if len(row) == 2]

    def end(self) -> None:
        """End what runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.kill(self.process.pid, 9)
                self.process.wait(10)
