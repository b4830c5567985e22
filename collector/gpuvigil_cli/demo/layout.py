"""Where the demo lives: two separate temporary directories, free ports, one config file a process.

The collector's directory and the simulators' directory share no path: nothing that the collector is given
leads to the scenario or to the truth.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpuvigil_cli.client import CliError
from gpuvigil_cli.demo.children import clean_environment
from gpuvigil_cli.text import clean

_SCENARIO_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Directories and loopback ports of one demo."""

    collector: Path
    fleet: Path
    grpc_port: int
    http_port: int
    agent_port: int

    @property
    def url(self) -> str:
        """The collector's API and web address."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def urls(self) -> dict[str, str]:
        """What a person may open while it runs."""
        return {
            "incidents": f"{self.url}/api/v1/incidents?state=all",
            "metrics of the collector": f"{self.url}/metrics",
            "metrics of this machine's agent": f"http://127.0.0.1:{self.agent_port}/metrics",
        }

    def remove(self) -> None:
        """Delete both directories, whatever is left in them."""
        for directory in (self.collector, self.fleet):
            shutil.rmtree(directory, ignore_errors=True)


def make_layout() -> Layout:
    """Make the directories (mode 0700) and choose free ports."""
    grpc_port, http_port, agent_port = free_ports(3)
    return Layout(
        collector=Path(tempfile.mkdtemp(prefix="gpuvigil-collector-")),
        fleet=Path(tempfile.mkdtemp(prefix="gpuvigil-fleet-")),
        grpc_port=grpc_port,
        http_port=http_port,
        agent_port=agent_port,
    )


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nobody listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def write_toml(path: Path, tables: dict[str, dict[str, object]]) -> Path:
    """Write TOML: the table "" holds the top-level keys. JSON's strings, numbers and booleans are TOML's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for table, values in tables.items():
        lines += [f"[{table}]"] if table else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_collector(layout: Layout, more: dict[str, dict[str, object]] | None = None) -> Path:
    """Write the collector's config: addresses and state, and what repair is told (`more`), nothing else."""
    return write_toml(
        layout.collector / "collector.toml",
        {
            "": {"state_directory": str(layout.collector / "state")},
            "ingest": {"address": f"127.0.0.1:{layout.grpc_port}"},
            "web": {"address": f"127.0.0.1:{layout.http_port}"},
            "detection": {"learn": "48s"},  # so that statistics, too, may be wrong while faults come
            **(more or {}),
        },
    )


def write_agent(layout: Layout) -> Path:
    """Write the config of this machine's real agent: its own host name, a driver where there is one."""
    here = layout.fleet / "this-machine"
    return write_toml(
        here / "agent.toml",
        {
            "": {"state_directory": str(here / "state")},
            "collector": {"address": f"127.0.0.1:{layout.grpc_port}"},
            "metrics": {"address": f"127.0.0.1:{layout.agent_port}"},
            "hook": {"socket": str(here / "hook.sock")},
        },
    )


def write_node(
    layout: Layout, node: str, *, gpus: int, seed: int, start_ns: int, scenario: Path,
    more: dict[str, dict[str, object]] | None = None,
) -> Path:  # fmt: skip
    """Write the config of one simulated node; it writes its own truth file. more: further tables."""
    here = layout.fleet / node
    return write_toml(
        here / "agent.toml",
        {
            "": {"node": node, "state_directory": str(here / "state")},
            "collector": {"address": f"127.0.0.1:{layout.grpc_port}"},
            "gpu": {"source": "simulated"},
            "metrics": {"address": ""},
            "hook": {"socket": str(here / "hook.sock")},
            "simulate": {
                "gpus": gpus,
                "seed": seed,
                "scenario": str(scenario),
                "start_ns": start_ns,
                "truth_file": str(truth_file(layout, node)),
            },
            **(more or {}),
        },
    )


def truth_file(layout: Layout, node: str) -> Path:
    """Return where a simulated node says what it broke and when."""
    return layout.fleet / node / "truth.jsonl"


def make_scenario(layout: Layout, *, nodes: int, gpus: int, seed: int, own: Path | None) -> Path:
    """Put the scenario where the simulators read it: the user's file, or one drawn from the seed."""
    path = layout.fleet / "scenario.toml"
    if own is not None:
        try:
            path.write_bytes(own.read_bytes())
        except OSError as error:
            raise CliError(f"--scenario: {own} cannot be read: {error.strerror}") from None
        simulator(["check", str(path)])
        return path
    arguments = ["demo-scenario", "--seed", str(seed), "--nodes", str(nodes), "--gpus", str(gpus)]
    path.write_bytes(simulator(arguments))
    return path


def simulator(arguments: list[str]) -> bytes:
    """Run the simulator's own command and return what it printed."""
    command = [sys.executable, "-m", "gpuvigil_agent.simulate", *arguments]
    try:
        done = subprocess.run(
            command, env=clean_environment(), capture_output=True, timeout=_SCENARIO_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CliError(
            f"the simulator did not answer {arguments[0]} within {_SCENARIO_TIMEOUT_S} s"
        ) from None
    if done.returncode != 0:
        raise CliError(f"the simulator refused: {clean(done.stderr.decode(errors='replace').strip(), 600)}")
    return done.stdout
