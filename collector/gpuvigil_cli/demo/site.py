"""Where the demo's job runs: what such a place tells the collector and the agents, how a job starts."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from gpuvigil_cli.client import Client
from gpuvigil_cli.demo import layout as files
from gpuvigil_cli.demo.children import Children, clean_environment
from gpuvigil_cli.demo.layout import Layout
from gpuvigil_collector import policy

FOLDER: Final = "demo-repair"
NODES: Final = ("train-00", "train-01")
GPUS: Final = 2
AWAY_S: Final = 10.0
"""How long the GPU is lost; after that somebody has reseated it."""
LEASE_S: Final = 32.0
"""The collector may not act before: a new lease is nobody's for 30 s."""
Tables = dict[str, dict[str, object]]


class Site(Protocol):
    """One scheduler of the demo. job: as the collector calls it, "" until it is started."""

    @property
    def job(self) -> str:
        """Name of the job."""
        ...

    def prepare(self, children: Children) -> None:
        """Start what must run before the collector. Raises CliError."""
        ...

    def collector_tables(self) -> Tables:
        """What the collector's config says about repair."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """What the collector needs in its environment."""
        ...

    def node_tables(self, node: str) -> Tables:
        """What the config of a node's agent says about the job."""
        ...

    def start(self, client: Client) -> str:
        """Start the job on the first node; return what was asked. Raises CliError: not yet."""
        ...

    def end(self) -> None:
        """End the job, wherever it runs: it must not outlive the demo."""
        ...


def with_torch() -> bool:
    """Whether the job can be a torchrun job of two ranks."""
    return importlib.util.find_spec("torch") is not None


def kind_of_job() -> str:
    """What the job is, for people."""
    return "2 ranks, torchrun and gloo" if with_torch() else "1 rank, plain Python: no torch is installed"


def onset_s(*, training: bool) -> float:
    """When the GPU is lost, s after the start: the job must have made steps by then."""
    if not with_torch():
        return LEASE_S + 14
    return LEASE_S + (50 if training else 46)


def command(folder: Path) -> list[str]:
    """Return the job's command line; it keeps its checkpoints below the folder."""
    script = Path(__file__).with_name("job.py" if with_torch() else "plain_job.py")
    torchrun = ["-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--max-restarts=0",
                "--monitor-interval=0.2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
                "--local-addr=127.0.0.1", f"--log-dir={folder}/torchrun"]  # fmt: skip
    return [sys.executable, *(torchrun if with_torch() else []), str(script), str(folder)]


def environment(folder: Path) -> dict[str, str]:
    """Return what the job needs in its environment; what torch writes beside it goes into the folder."""
    passed = {key: clean_environment().get(key, "") for key in ("PYTHONPATH", "HOME")}
    return {key: text for key, text in passed.items() if text} | {
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }  # fmt: skip


def write_policy(layout: Layout, move_within: str) -> Path:
    """The shipped policy, but that a lost GPU is repaired without a reboot, and all else is only told."""
    steps = (
        ("capture_evidence", "30s", "always"), ("checkpoint", "1min", "job"), ("hold", "1min", "always"),
        ("move_job", move_within, "job"), ("validate", "2min", "idle"), ("release", "1min", "always"),
    )  # fmt: skip
    listed = ", ".join(f'{{ do = "{do}", within = "{s}", when = "{when}" }}' for do, s, when in steps)
    rows = [
        'version = 1\n[playbook.demo]\nreason = "nobody can reboot a simulated node: its GPU comes back"\n'
        f"steps = [{listed}]\n"
    ]
    for name in policy.load(None).class_:
        if name == "gpu_lost":
            rows.append(f'[class.{name}]\nplaybook = "demo"\nseverity = "critical"\nreason = "the demo"\n')
        else:
            rows.append(f'[class.{name}]\nplaybook = "tell"\nreason = "in the demo it is found, no more"\n')
    path = layout.collector / "policy.toml"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def remediation(book: Path, scheduler: str) -> Tables:
    """What both places say of repair: recommended, approved by a person, proven after 3 clean seconds."""
    return {
        "remediation": {
            "mode": "recommend", "scheduler": scheduler, "clean_wait": "3s", "policy": str(book),
        },
        # the scenario loses a GPU on two nodes more: with the shipped 3 that is a storm
        "remediation.limits": {"storm_nodes": 4},
    }  # fmt: skip


def write_nodes(layout: Layout, site: Site, *, seed: int, start_ns: int, onset_s: float) -> dict[str, Path]:
    """Write the configs of the job's nodes and the scenario of what befalls the first."""
    (layout.fleet / FOLDER).mkdir(exist_ok=True)
    scenario = layout.fleet / "repair.toml"
    scenario.write_text(
        f'version = 1\n\n[[fault]]\nkind = "gpu_lost_xid79"\nnode = "{NODES[0]}"\ngpu = 1\n'
        f'at = "{onset_s:g}s"\nduration = "{AWAY_S:g}s"\n',
        encoding="utf-8",
    )
    return {
        node: files.write_node(
            layout, node, gpus=GPUS, seed=seed, start_ns=start_ns, scenario=scenario,
            more=_own_pause(layout, node) | site.node_tables(node),
        )
        for node in NODES
    }  # fmt: skip


def _own_pause(layout: Layout, node: str) -> Tables:
    """A pause of the node's own: this machine's is not the demo's."""
    return {"helper": {"pause_files": [str(layout.fleet / node / "pause")]}}
