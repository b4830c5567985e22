"""The demo's training job: slowed, stopped, restarted by the operator's command, killed; and what it cost.

Plays the saboteur (orders in the job's folder, with a line in a truth file each) and the operator (a restart
once the hang is certain). What is found is judged like every other fault of the demo.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Final

from gpuvigil_cli.client import Client, CliError, Json
from gpuvigil_cli.demo.children import Children
from gpuvigil_cli.demo.layout import Layout
from gpuvigil_cli.demo.screen import Screen
from gpuvigil_cli.text import duration

JOB: Final = "demo"
# seconds after the scenario's zero -> order, class that an honest incident has
ACTS: Final = (
    (62.0, "slow", "straggler"),
    (76.0, "", ""),
    (84.0, "stop", "hang"),
    (138.0, "kill", "process_dead"),
)
FAULTS: Final = sum(bool(fault_class) for _, _, fault_class in ACTS)
LAST_S: Final = 138.0
_STEPS_MIN: Final = 60  # that the job has made before the first act


def available() -> bool:
    """Whether there is a torch to train with."""
    return importlib.util.find_spec("torch") is not None


class TrainingJob:
    """Call `look` twice a second."""

    def __init__(self, place: Layout, client: Client, screen: Screen, start_ns: int) -> None:
        self._client, self._screen, self._start_ns = client, screen, start_ns
        self._folder = place.fleet / "training"
        self._socket = place.fleet / "this-machine" / "hook.sock"
        self.truth = self._folder / "truth.jsonl"
        self._acts = list(ACTS)
        self._down_ns = 0
        self._asked = False
        self._step = -1
        self._restarts = 0
        self.resumed: list[Json] = []

    @property
    def stops(self) -> int:
        """How many of the acts end the job's progress."""
        return sum(order in {"stop", "kill"} for _, order, _ in ACTS)

    def start(self, children: Children) -> None:
        """Start the job under its launcher."""
        self._folder.mkdir()
        run = ["-m", "gpuvigil.cli", "run", "--job", JOB, "--checkpoints", str(self._folder / "checkpoints"),
               "--backoff", "0.5", "--"]  # fmt: skip
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2",
                    "--max-restarts=0", "--monitor-interval=0.2", "--rdzv-backend=c10d",
                    "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1",
                    str(Path(__file__).with_name("job.py")), str(self._folder)]  # fmt: skip
        more = {"GPUVIGIL_SOCKET": str(self._socket), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        children.run("training job", [*run, *torchrun], self._folder / "job.log", more)
        self._screen.say("a training job of 2 ranks runs on this machine (torchrun, gloo)")

    def look(self) -> None:
        """Do what is due, restart what hangs, say what goes on."""
        row = next((row for row in self._client.items("/api/v1/jobs") if row.get("job") == JOB), None)
        if row is None:
            return
        self._act(row)
        self._help()
        self._follow(row)

    def _act(self, row: Json) -> None:
        if not self._acts or time.time_ns() < self._start_ns + int(self._acts[0][0] * 1e9):
            return
        if (row.get("step") or 0) < _STEPS_MIN:
            raise CliError("demo: the training job has made too few steps; its log is beside the collector's")
        _, order, fault_class = self._acts.pop(0)
        nodes = row.get("nodes") or ["?"]
        now_ns = time.time_ns()
        if fault_class:
            line = {"fault": f"rank_{order}", "class": fault_class, "target": f"{nodes[0]}/rank:{JOB}/1",
                    "injected_ns": now_ns}  # fmt: skip
            with self.truth.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        (self._folder / "order").write_text(order, encoding="utf-8")
        if order in {"stop", "kill"}:
            self._down_ns, self._step = now_ns, int(row.get("step") or 0)
            self._restarts = int(row.get("restart") or 0)

    def _help(self) -> None:
        """Restart the job once it is certain who holds it, as an operator would."""
        if self._asked:
            return
        opened = self._client.items("/api/v1/incidents", state="open")
        if any(row.get("class") == "hang" and row.get("severity") == "critical" for row in opened):
            self._client.ask(JOB, "restart")
            self._asked = True
            self._screen.say(f"[cyan]asked[/]  gpuvigil restart {JOB}: from its newest checkpoint")

    def _follow(self, row: Json) -> None:
        """Say that the job goes on, where from, and what that took."""
        if (
            not self._down_ns
            or int(row.get("restart") or 0) <= self._restarts
            or row.get("state") != "running"
        ):
            return
        step, saved = row.get("step"), (row.get("checkpoint") or {}).get("step")
        if not isinstance(step, int):
            return
        seconds = (time.time_ns() - self._down_ns) / 1e9
        self._down_ns = 0
        self.resumed.append(
            {"step": step, "checkpoint_step": saved, "was_at": self._step, "seconds": seconds}
        )
        self._screen.say(
            f"[green]again[/]  job {JOB} makes steps, {duration(seconds)} after it stopped at step "
            f"{self._step}: from the checkpoint of step {saved}"
        )
