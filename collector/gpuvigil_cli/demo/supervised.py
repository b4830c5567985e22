"""The files of the demo's repair: two nodes whose agents may run one job, and what may be done there."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from gpuvigil_cli.demo import layout as files
from gpuvigil_cli.demo.children import clean_environment
from gpuvigil_cli.demo.layout import Layout
from gpuvigil_collector import policy

JOB: Final = "demo-repair"
NODES: Final = ("train-00", "train-01")
GPUS: Final = 2
AWAY_S: Final = 10.0
"""How long it is lost; after that somebody has reseated it."""
_LEASE_S: Final = 32.0  # the collector may not act before: a new lease is nobody's for 30 s
_STOP_S: Final = 5.0
_MARK: Final = b"GPUVIGIL_SUPERVISED="
_STEPS: Final = (
    ("capture_evidence", "30s", "always"), ("checkpoint", "1min", "job"), ("hold", "1min", "always"),
    ("move_job", "1min", "job"), ("validate", "2min", "idle"), ("release", "1min", "always"),
)  # fmt: skip


def with_torch() -> bool:
    """Whether the job can be a torchrun job of two ranks."""
    return importlib.util.find_spec("torch") is not None


def onset_s(*, training: bool) -> float:
    """When the GPU is lost, s after the start: the job must have made steps by then."""
    if not with_torch():
        return _LEASE_S + 14
    return _LEASE_S + (50 if training else 46)


def collector_tables(layout: Layout) -> dict[str, dict[str, object]]:
    """What the collector's config says about repair."""
    book = layout.collector / "policy.toml"
    book.write_text(_policy(), encoding="utf-8")
    return {
        "remediation": {
            "mode": "recommend", "scheduler": "supervisor", "clean_wait": "3s", "policy": str(book),
        },
        # the scenario loses a GPU on two nodes more: with the shipped 3 that is a storm
        "remediation.limits": {"storm_nodes": 4},
        "actuators.supervised": {JOB: list(NODES)},
    }  # fmt: skip


def write_nodes(layout: Layout, *, seed: int, start_ns: int, onset_s: float) -> dict[str, Path]:
    """Write the configs of the job's nodes and the scenario of what befalls the first."""
    (layout.fleet / JOB).mkdir()
    scenario = layout.fleet / "repair.toml"
    scenario.write_text(
        f'version = 1\n\n[[fault]]\nkind = "gpu_lost_xid79"\nnode = "{NODES[0]}"\ngpu = 1\n'
        f'at = "{onset_s:g}s"\nduration = "{AWAY_S:g}s"\n',
        encoding="utf-8",
    )
    return {
        node: files.write_node(
            layout, node, gpus=GPUS, seed=seed, start_ns=start_ns, scenario=scenario,
            more=_job_tables(layout, node),
        )
        for node in NODES
    }  # fmt: skip


def _policy() -> str:
    """The shipped policy, but that a lost GPU is repaired without a reboot, and all else is only told."""
    steps = ", ".join(f'{{ do = "{do}", within = "{s}", when = "{when}" }}' for do, s, when in _STEPS)
    rows = [
        'version = 1\n[playbook.demo]\nreason = "nobody can reboot a simulated node: its GPU comes back"\n'
        f"steps = [{steps}]\n"
    ]
    for name in policy.load(None).class_:
        if name == "gpu_lost":
            rows.append(f'[class.{name}]\nplaybook = "demo"\nseverity = "critical"\nreason = "the demo"\n')
        else:
            rows.append(f'[class.{name}]\nplaybook = "tell"\nreason = "in the demo it is found, no more"\n')
    return "\n".join(rows)


def _job_tables(layout: Layout, node: str) -> dict[str, dict[str, object]]:
    folder = layout.fleet / JOB
    script = Path(__file__).with_name("job.py" if with_torch() else "plain_job.py")
    torchrun = ["-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--max-restarts=0",
                "--monitor-interval=0.2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
                "--local-addr=127.0.0.1"]  # fmt: skip
    command = [sys.executable, *(torchrun if with_torch() else []), str(script), str(folder)]
    passed = {key: clean_environment().get(key, "") for key in ("PYTHONPATH", "HOME")}
    environment: dict[str, object] = {key: text for key, text in passed.items() if text}
    return {
        "helper": {"pause_files": [str(layout.fleet / node / "pause")]},  # not this machine's own
        f"supervisor.jobs.{JOB}": {
            "command": command, "directory": str(folder), "grace": "3s",
            "checkpoints": str(folder / "checkpoints"),
        },
        f"supervisor.jobs.{JOB}.environment": environment
        | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    }  # fmt: skip


def end_jobs(layout: Layout) -> None:
    """End the supervised job wherever it runs: it outlives its agent, and must not outlive the demo."""
    for node in NODES:
        record = _record(layout.fleet / node / "state" / "supervised" / f"{JOB}.json")
        if record is None:
            continue
        _end_marked(str(record.get("mark", "")).encode(), signal.SIGTERM, leader=record.get("pid"))
        deadline = time.monotonic() + _STOP_S
        while _marked(str(record.get("mark", "")).encode()) and time.monotonic() < deadline:
            time.sleep(0.1)
        _end_marked(str(record.get("mark", "")).encode(), signal.SIGKILL)


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
