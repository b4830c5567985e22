"""A fleet that repairs itself: a scheduler, one collector that acts, four agents of simulated nodes, one job.

The scheduler's nodes gn1 to gn4 have an agent each, whose simulated GPU 3 of gn1 is lost (Xid 79) at a time
that is set when the agents start and comes back by itself, as if somebody had mended it. The job is one of
the scheduler's that saves with gpuvigil's Saver; it writes each step down, and knows nothing of the test.
On Slurm in repair_fleet.py, on Kubernetes in kube_repair.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration import stack

INTERVAL = 60
"""Steps between two saves that nobody asks for; a step takes STEP_S."""
STEP_S = 0.2
# the site's power tool: a node that it has rebooted since its fault began is back when the fault has gone
REBOOT = """\
#!/bin/sh
echo "$1" >> {folder}/reboots
date +%s > {folder}/reboot-$1
"""
BACK = """\
#!/bin/sh
now=$(date +%s) began=0 ends=0
while read -r from to; do [ "$now" -lt "$from" ] || {{ began=$from; ends=$to; }}; done < {folder}/faults
[ "$(cat {folder}/reboot-$1 2>/dev/null || echo -1)" -ge "$began" ] || exit 1
[ "$now" -ge "$ends" ] && exit 0
exit 3
"""
JOB = """\
import json, os, sys, time
from pathlib import Path
from gpuvigil import monitor
from gpuvigil.saver import Saver

folder, interval, step_s, node = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
state, restarts = {"step": -1, "sum": 0}, os.environ.get("SLURM_RESTART_COUNT", "0")
saver = Saver(folder / "checkpoints",
              save=lambda to: (to / "state.json").write_text(json.dumps(state)), every=2, interval=interval)
first = saver.resume(load=lambda at: state.update(json.loads((at / "state.json").read_text())))
steps = (folder / "steps").open("a", buffering=1)
for step in range(first, 10**9):
    with monitor.step(step):
        time.sleep(step_s)
    assert step == state["step"] + 1, f"step {step} after {state}"
    state.update(step=step, sum=state["sum"] + step)
    steps.write(f"{time.time_ns()} {node} {restarts} {step} {state['sum']}\\n")
    outcome = saver.step(step)
    if outcome is not None:
        with (folder / "saves").open("a") as saves:
            saves.write(f"{time.time_ns()} {outcome.word} {outcome.step} {outcome.request or '-'}\\n")
"""


@dataclass(frozen=True)
class Step:
    """One step as the job wrote it down."""

    at_ns: int
    node: str
    restarts: int
    step: int
    sum: int


@dataclass
class Fleet:
    """Start it with `start`; all is judged from outside: the scheduler's word, the job's files, the API.

    again_s: when the same GPU is lost again, after the first time. verdicts: a folder with the collector's
    key.pem, where each node gets NODE/verdict; None: none are kept.
    """

    folder: Path
    clean_wait_s: int = 15
    fault_at_s: float = 50
    fault_s: float = 15
    again_s: tuple[float, ...] = ()
    restore_grace_s: int = 120
    more: str = ""
    verdicts: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    job: str = ""
    start_ns: int = 0
    kind: str = ""
    nodes: tuple[str, ...] = ("gn1", "gn2", "gn3", "gn4")

    def scheduler(self) -> str:
        """The tables of the collector's configuration that name the scheduler."""
        raise NotImplementedError

    def submit(self) -> str:
        """Submit the job: eight GPUs, any node. Returns the scheduler's name of it."""
        raise NotImplementedError

    def where(self) -> str:
        """The node that runs the job, by the scheduler's word; "" while it runs nowhere."""
        raise NotImplementedError

    def held(self) -> bool:
        """Whether gpuvigil holds gn1, by the scheduler's word."""
        raise NotImplementedError

    def told(self) -> str:
        """What the scheduler says, for people."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        self.grpc, self.web = stack.free_port(), stack.free_port()
        self.collector: subprocess.Popen[bytes] | None = None
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        for name, text in (("reboot", REBOOT), ("back", BACK)):
            (self.folder / name).write_text(text.format(folder=self.folder))
            (self.folder / name).chmod(0o755)
        (self.folder / "job.py").write_text(JOB)
        (self.folder / "collector.toml").write_text(
            f'state_directory = "{self.folder}/collector"\n'
            f'[ingest]\naddress = "127.0.0.1:{self.grpc}"\n[web]\naddress = "127.0.0.1:{self.web}"\n'
            f'[incidents]\nclear_after = "15s"\nrestore_grace = "{self.restore_grace_s}s"\n'
            f'{self.scheduler()}[remediation]\nmode = "act"\nscheduler = "{self.kind}"\n'
            f'clean_wait = "{self.clean_wait_s}s"\n{self.more}\n'
            f'[[actuators.command]]\nname = "power"\nkinds = ["reboot"]\n'
            f'apply = ["{self.folder}/reboot", "{{node}}"]\nlook = ["{self.folder}/back", "{{node}}"]\n'
        )

    @property
    def fault_ns(self) -> int:
        """When the GPU is lost."""
        return self.start_ns + int(self.fault_at_s * 1e9)

    def start(self, lease_s: float = 35) -> None:
        """Collector first: a new lease is nobody's for its first 30 s. Then agents, then the job."""
        self.start_collector()
        stack.wait_for(lambda: self.get("health"), 60, f"the collector's API: {self.log('collector')}")
        self.start_ns = time.time_ns()
        faults = [
            f'[[fault]]\nkind = "gpu_lost_xid79"\nnode = "gn1"\ngpu = 3\nat = "{self.fault_at_s + after}s"\n'
            f'duration = "{self.fault_s}s"\n'
            for after in (0.0, *self.again_s)
        ]
        (self.folder / "scenario.toml").write_text("version = 1\n" + "".join(faults))
        begins = [int(self.fault_ns / 1e9 + after) for after in (0.0, *self.again_s)]
        times = [f"{begin} {int(begin + self.fault_s + 2)}\n" for begin in begins]
        (self.folder / "faults").write_text("".join(times))
        for node in self.nodes:
            self.start_agent(node)
        self.connected()
        self.job = self.submit()
        placed = stack.wait_for(self.where, 30, "the job's start")
        assert placed == "gn1", f"the scheduler began with {placed}"
        stack.wait_for(lambda: self.job in self.jobs(), 40, f"the job's ranks: {self.log('agent-gn1')}")
        stack.wait_for(lambda: self.get("remediation")["lease"], lease_s, "the lease")
        left_s = (self.fault_ns - time.time_ns()) / 1e9
        assert left_s > 0, f"the fault came {-left_s:.1f} s before the fleet was ready: a slower machine"

    def start_collector(self) -> None:
        """Start it, or start it again over its state."""
        config = self.folder / "collector.toml"
        self.collector = self._run("collector", "gpuvigil_collector", config, self.environment)

    def start_agent(self, node: str) -> None:
        """Start one node's agent."""
        config = self.folder / f"agent-{node}.toml"
        config.write_text(
            f'node = "{node}"\nstate_directory = "{self.folder}/{node}"\n'
            f'[collector]\naddress = "127.0.0.1:{self.grpc}"\nbackoff_max = "1s"\n[metrics]\naddress = ""\n'
            f'[hook]\nsocket = "{self.folder}/hook-{node}.sock"\n[gpu]\nsource = "simulated"\n'
            f'[host]\nkernel_log = "none"\n[validation]\ntimeout = "60s"\n'
            f'[helper]\nsocket = "{self.folder}/helper-{node}.sock"\npause_files = []\n'
            f'[simulate]\ngpus = 8\nscenario = "{self.folder}/scenario.toml"\nstart_ns = {self.start_ns}\n'
            + (
                f'[verdict]\ndirectory = "{self.verdicts}/{node}/verdict"\n'
                if self.verdicts is not None
                else ""
            )
        )
        self.agents[node] = self._run(f"agent-{node}", "gpuvigil_agent", config, {})

    def connected(self) -> None:
        """Wait for all four agents."""

        def all_there() -> bool:
            return sum(row["state"] == "up" for row in self.get("nodes")["items"]) == len(self.nodes)

        stack.wait_for(all_there, 60, f"four agents: {self.log('agent-gn1')}")

    def get(self, path: str) -> Any:
        """GET of the API."""
        return json.loads(stack.fetch(f"http://127.0.0.1:{self.web}/api/v1/{path}"))

    def jobs(self) -> dict[str, Any]:
        """Jobs that the collector knows by their ranks."""
        return {row["job"]: row for row in self.get("jobs")["items"]}

    def cases(self) -> list[Any]:
        """Cases of real faults, oldest first."""
        found = [row for row in self.get("cases")["items"] if not row["synthetic"]]
        return sorted(found, key=lambda row: row["opened_ns"])

    def actions(self) -> list[Any]:
        """Actions, in the API's order."""
        return list(self.get("actions")["items"])

    def steps(self) -> list[Step]:
        """What the job wrote down."""
        path = self.folder / "steps"
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [Step(int(r[0]), r[1], int(r[2]), int(r[3]), int(r[4])) for r in rows if len(r) == 5]

    def saves(self) -> list[tuple[int, str, int, str]]:
        """(when, word, step, request) of each save."""
        path = self.folder / "saves"
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(row[0]), row[1], int(row[2]), row[3]) for row in rows]

    def log(self, name: str) -> str:
        """The end of what a process said."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def kill_collector(self) -> None:
        """SIGKILL to the collector and its workers, as a power cut would."""
        assert self.collector is not None
        os.killpg(self.collector.pid, signal.SIGKILL)
        self.collector.wait(10)

    def kill_agent(self, node: str) -> None:
        """SIGKILL to one node's agent and its driver process."""
        os.killpg(self.agents[node].pid, signal.SIGKILL)
        self.agents[node].wait(10)

    def stop(self) -> None:
        """End the agents and the collector, by pid."""
        processes = [*self.agents.values(), *([self.collector] if self.collector is not None else [])]
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            try:
                process.wait(stack.STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def _run(self, name: str, module: str, config: Path, more: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as out:
            return subprocess.Popen(
                (sys.executable, "-m", module, "--config", str(config)), stdout=out, stderr=out,
                env=stack.environment() | more, start_new_session=True,
            )  # fmt: skip
