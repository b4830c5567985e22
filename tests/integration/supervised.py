"""Two real agents under one real ingest, each may run the job `train`; actuators reach them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from integration.agent_process import AgentProcess
from integration.ingest_host import Host, until

from gpuvigil_agent.processes import MARK
from gpuvigil_collector.action import Action, AmbiguousError, Answer, Fence, Kind, Proposal, RefusedError
from gpuvigil_collector.ingest.frames import Command

# a job as they are: a child in a session of its own that heeds no SIGTERM, and steps on a shared disk
JOB = """
import os, signal, subprocess, sys, time
folder = sys.argv[1]
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(f"{folder}/child-{os.environ['NODE']}", "w").write(str(os.getpid()))
    time.sleep(600)
subprocess.Popen([sys.executable, __file__, folder, "child"], start_new_session=True)
attempt = os.environ["GPUVIGIL_GENERATION"] + "/" + os.environ["GPUVIGIL_ATTEMPT"]
for step in range(10**9):
    with open(f"{folder}/steps", "a") as file:
        file.write(f"{os.environ['NODE']} {attempt} {step}\\n")
    print("step", step, "x" * 200, flush=True)
    time.sleep(0.05)
"""


class Node:
    """One agent, its state and its pause file in a folder of its own."""

    def __init__(self, folder: Path, name: str, port: int, shared: Path, more: str = "") -> None:
        self.name, self.folder = name, folder / name
        self.folder.mkdir()
        self.pause = self.folder / "pause"
        self.agent = AgentProcess(self.folder, port, f'[hook]\nsocket = "{self.folder}/hook.sock"')
        text = self.agent.config.read_text().replace('node = "n1"', f'node = "{name}"')
        python = os.sys.executable
        self.agent.config.write_text(
            text + f'[helper]\nsocket = "{self.folder}/helper.sock"\npause_files = ["{self.pause}"]\n'
            f'[supervisor.jobs.train]\ncommand = ["{python}", "{shared}/job.py", "{shared}"]\ngrace = "1s"\n'
            f'log_max = "16KiB"\nenvironment = {{NODE = "{name}"}}\n{more}'
        )

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def record(self) -> dict:
        return json.loads((self.state / "supervised/train.json").read_text())


class Pair:
    """Nodes n1 and n2. `call` is an AgentCall for an actuator's thread."""

    def __init__(self, host: Host, folder: Path, shared: Path, more: str) -> None:
        port = int(host.address.rpartition(":")[2])
        self.host, self.shared = host, shared
        self.nodes = {name: Node(folder, name, port, shared, more) for name in ("n1", "n2")}
        self._loop = asyncio.get_running_loop()
        self._results: dict[str, object] = {}
        self._count = 0

    async def connected(self, *names: str) -> None:
        def up() -> bool:
            seen = self.host.store.snapshot(time.time_ns()).nodes
            return all(name in seen for name in names)

        await until(up, f"the streams of {names}", 40)

    async def ask(self, node: str, verb: str, arguments: Mapping[str, str], seconds: float = 30) -> Answer:
        self._count += 1
        name = f"c{self._count}"
        self.host.ingest.send(Command(node, name, verb, dict(arguments), time.time_ns() + int(seconds * 1e9)))
        deadline = time.monotonic() + seconds
        while name not in self._results:
            self._results |= {result.id: result for result in self.host.store.results()}
            if time.monotonic() > deadline:
                raise AmbiguousError(f"no answer of {node}")
            await asyncio.sleep(0.02)
        found = self._results[name]
        return Answer(accepted=found.accepted, outcome=found.outcome)

    def call(self, node: str, verb: str, arguments: Mapping[str, str], deadline_s: float) -> Answer:
        process = self.nodes[node].agent.process
        if process is None or process.poll() is not None:
            raise RefusedError(f"{node} is not connected")
        future = asyncio.run_coroutine_threadsafe(self.ask(node, verb, arguments, deadline_s), self._loop)
        return future.result(deadline_s + 5)

    def steps(self) -> list[list[str]]:
        file = self.shared / "steps"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


@contextlib.asynccontextmanager
async def pair(folder: Path, more: str = "") -> AsyncIterator[Pair]:
    shared = folder / "shared"
    shared.mkdir()
    (shared / "job.py").write_text(JOB)
    with Host(folder / "collector") as host:
        made = Pair(host, folder, shared, more)
        try:
            for node in made.nodes.values():
                node.agent.start()
            await made.connected("n1", "n2")
            yield made
        finally:
            for node in made.nodes.values():
                if node.agent.process is not None and node.agent.process.poll() is None:
                    node.agent.process.kill()
                    node.agent.process.wait(10)
            for pid in marked():
                os.kill(pid, signal.SIGKILL)


def marked(node: str = "") -> list[int]:
    """Every living process of the supervised job, by its environment: an eye of our own on /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "environ").read_bytes().split(b"\0")
                ours = any(word.startswith(f"{MARK}=train:".encode()) for word in words)
                if ours and (not node or f"NODE={node}".encode() in words):
                    found.append(int(entry.name))
    return found


def action(kind: Kind, node: str, name: str = "a1", **more: object) -> Action:
    """An action that the kernel allowed."""
    proposal = Proposal(
        id=name, case="c1", incident="i-7", fault_class="gpu_lost", playbook="p", step=1, kind=kind,
        node=node, reason="Xid 79 on gpu2", deadline_s=30, **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return Action(proposal=proposal, state="intended")


FENCE = Fence(holder="test", generation=3, until_ns=1 << 62)
