"""The demo's job under the agents themselves: no scheduler, one of two nodes runs it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from gpuvigil_cli.client import Client
from gpuvigil_cli.demo import site as common
from gpuvigil_cli.demo.children import Children
from gpuvigil_cli.demo.layout import Layout
from gpuvigil_cli.demo.site import NODES, Tables

JOB: Final = "demo-repair"
_STOP_S: Final = 5.0
_MARK: Final = b"GPUVIGIL_SUPERVISED="


@dataclass(frozen=True, slots=True)
class Supervised:
    """The agents of train-00 and train-01 may run the job."""

    place: Layout
    job: str = JOB
    environment: Mapping[str, str] = field(default_factory=dict)

    def prepare(self, children: Children) -> None:
        """Nothing is needed but the agents."""

    def collector_tables(self) -> Tables:
        """Name the nodes that may run the job."""
        book = common.write_policy(self.place, move_within="1min")
        return common.remediation(book, "supervisor") | {"actuators.supervised": {JOB: list(NODES)}}

    def node_tables(self, node: str) -> Tables:
        """Say how the job is run."""
        folder = self.place.fleet / common.FOLDER
        return {
            f"supervisor.jobs.{JOB}": {
                "command": common.command(folder), "directory": str(folder), "grace": "3s",
                "checkpoints": str(folder / "checkpoints"),
            },
            f"supervisor.jobs.{JOB}.environment": dict(common.environment(folder)),
        }  # fmt: skip

    def start(self, client: Client) -> str:
        """Have it started on the node that will fail, as an operator would: once the lease is ours."""
        client.start(JOB, NODES[0])
        return f"gpuvigil start {JOB} --node {NODES[0]}: {common.kind_of_job()}, run by its agent"

    def end(self) -> None:
        """End it: it outlives its agent."""
        for node in NODES:
            record = _record(self.place.fleet / node / "state" / "supervised" / f"{JOB}.json")
            if record is None:
                continue
            mark = str(record.get("mark", "")).encode()
            _end_marked(mark, signal.SIGTERM, leader=record.get("pid"))
            deadline = time.monotonic() + _STOP_S
            while _marked(mark) and time.monotonic() < deadline:
                time.sleep(0.1)
            _end_marked(mark, signal.SIGKILL)


def _record(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.get("mark") else None


def _end_marked(mark: bytes, number: signal.Signals, leader: object = None) -> None:
    for pid in _marked(mark):
        if leader is None or pid == leader:
            with suppress(OSError):
                os.kill(pid, number)


def _marked(mark: bytes) -> list[int]:
    """Return the processes of one start: all of them carry its mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if _MARK + mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
