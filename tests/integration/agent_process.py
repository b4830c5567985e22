"""One agent process for a test: its config file, its log, its metrics endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from integration.stack import environment, free_port

AGENT = ("-m", "gpuvigil_agent")
GAUGES = ("spooled", "in_flight")


class AgentProcess:
    """One agent with its state in `folder`; started as often as a test likes."""

    def __init__(self, folder: Path, port: int, extra: str = "", gpus: int = 1) -> None:
        self.folder, self.metrics_port = folder, free_port()
        self.config = folder / "agent.toml"
        self.write(port, extra, gpus)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, port: int, extra: str = "", gpus: int = 1) -> None:
        self.config.write_text(
            f'node = "n1"\nstate_directory = "{self.folder}/state"\n{extra}\n'
            f'[collector]\naddress = "127.0.0.1:{port}"\nconnect_timeout = "2s"\nbackoff_max = "1s"\n'
            f'[metrics]\naddress = "127.0.0.1:{self.metrics_port}"\n'
            f'[gpu]\nsource = "simulated"\n[simulate]\ngpus = {gpus}\nload = "idle"\n'
        )

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def start(self, program: Sequence[str] = AGENT, **more: str) -> subprocess.Popen[bytes]:
        """Start it, or what stands in for it: `program` gets the agent's arguments after its own."""
        command = (sys.executable, *program, "--config", str(self.config))
        with (self.folder / "agent.log").open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment() | more)
        return self.process

    def scrape(self) -> list[str]:
        """Return the endpoint's lines; nothing while it does not answer."""
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
                return list(answer.read().decode().splitlines())
        return []

    def metric(self, start: str) -> float:
        """Return the sum of every line that starts with `start`; -1 when there is none."""
        return total(self.scrape(), start)

    def balanced(self) -> bool:
        """Check the conservation law of both classes on the endpoint, in one scrape."""
        lines = self.scrape()
        for name in ("metrics", "events"):
            place = {
                p: total(
                    lines,
                    f'gpuvigil_agent_ledger_{p}_sequences{"" if p in GAUGES else "_total"}{{class="{name}"',
                )
                for p in ("produced", "durable", "dropped", *GAUGES)
            }
            parts = sum(max(0.0, place[p]) for p in ("durable", "spooled", "in_flight", "dropped"))
            if place["produced"] != parts:
                return False
        return bool(lines)


def total(lines: list[str], start: str) -> float:
    """Return the sum of every line that starts with `start`; -1 when there is none."""
    values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(start)]
    return sum(values) if values else -1.0


@pytest.fixture(name="make")
def make_agent(tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    made: list[AgentProcess] = []

    def build(port: int, extra: str = "") -> AgentProcess:
        made.append(AgentProcess(tmp_path, port, extra))
        return made[-1]

    yield build
    for agent in made:
        if agent.process is not None and agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait(10)


async def ended(process: subprocess.Popen[bytes], within_s: float) -> int:
    return await asyncio.wait_for(asyncio.to_thread(process.wait), within_s)
