"""A small fleet, a state of it in which all is known, and proposals: where the kernel's tests begin."""

from __future__ import annotations

from dataclasses import replace

from gpuvigil_collector.action import (
    Fence,
    FleetState,
    JobState,
    NodeState,
    Past,
    Proposal,
    Signal,
    Verdict,
)
from gpuvigil_collector.safety import authorise

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = 1_800_000_000 * SECOND
FATAL = Signal(origin="driver", rule="xid_79", start_ns=NOW - MINUTE, fatal=True)
DRIVER = Signal(origin="driver", rule="xid_94", start_ns=NOW - MINUTE)
HOST = Signal(origin="host", rule="pcie_aer", start_ns=NOW - MINUTE)
FABRIC = Signal(origin="fabric", rule="port_down", start_ns=NOW - MINUTE)
PEERS = Signal(origin="peers", rule="slower_than_peers", start_ns=NOW - MINUTE)
JOB = Signal(origin="job", rule="hang", start_ns=NOW - MINUTE)
STATISTICS = Signal(origin="statistics", rule="forest", start_ns=NOW - MINUTE)
FENCE = Fence(holder="collector-a", generation=3, until_ns=NOW + 28 * SECOND)


def node(name: str, **fields: object) -> NodeState:
    """A healthy node of 8 GPUs."""
    given = {"gpus": 8, "gpu_uuids": tuple(f"GPU-{name}-{i}" for i in range(8))} | fields
    return NodeState(node=name, **given)


def fleet(size: int = 20, nodes_a_rack: int = 2, **fields: object) -> dict[str, NodeState]:
    """Nodes n0, n1, ... of one partition, two to a rack."""
    names = [f"n{i}" for i in range(size)]
    place = {"partition": "train"} | fields
    return {
        name: node(name, **({"domain": f"rack{i // nodes_a_rack}"} | place)) for i, name in enumerate(names)
    }


def state(
    nodes: dict[str, NodeState] | None = None, jobs: tuple[JobState, ...] = (), **fields: object
) -> FleetState:
    """A state in which all is known and nothing forbids."""
    known = {
        "mode": "act",
        "paused": "",
        "past": (),
        "actionable": (),
        "breaker_ns": 0,
        "others": "",
        "fence": FENCE,
    }
    known |= {"nodes": nodes if nodes is not None else fleet(), "jobs": {job.job: job for job in jobs}}
    return FleetState(**(known | fields))


def with_job(name: str = "j1", on: tuple[str, ...] = ("n0",), size: int = 20, **fields: object) -> FleetState:
    """A state with one running job whose checkpoint is saved, on nodes that are not held."""
    known = {"gpus": 8 * len(on), "checkpoint": "saved"} | fields
    nodes = fleet(size)
    nodes |= {each: replace(nodes[each], jobs=(name,)) for each in on}
    return state(nodes, (JobState(job=name, nodes=on, **known),))


def held(of: FleetState, *names: str) -> FleetState:
    """The same with nodes that we hold."""
    return replace(of, nodes=dict(of.nodes) | {name: replace(of.nodes[name], hold="ours") for name in names})


def changed(of: FleetState, name: str, **fields: object) -> FleetState:
    """The same with one node that differs."""
    return replace(of, nodes=dict(of.nodes) | {name: replace(of.nodes[name], **fields)})


def ask(kind: str = "hold", name: str = "n0", **fields: object) -> Proposal:
    """A proposal with one listed-fatal fact."""
    given = {
        "id": f"{kind}-1",
        "case": "case-1",
        "incident": "i1",
        "fault_class": "gpu_lost",
        "playbook": "p",
        "step": 1,
        "reason": "xid 79",
        "gpus": 8,
        "evidence": (FATAL,),
    }
    if kind in ("checkpoint", "stop_job", "move_job"):
        given["job"] = "j1"
    if kind == "reset_gpu":
        given["gpu"] = f"GPU-{name}-0"
    return Proposal(kind=kind, node=name, **(given | fields))


def past(kind: str = "hold", name: str = "n5", ago: int = MINUTE, **fields: object) -> Past:
    """An action of another case, a minute ago."""
    given = {
        "id": f"past-{kind}-{name}-{ago}",
        "case": f"other-{name}-{ago}",
        "domain": f"rack{int(name[1:]) // 2}",
        "partition": "train",
        "job": "",
        "gpus": 8,
        "at_ns": NOW - ago,
        "jobs": (),
    }
    return Past(kind=kind, node=name, **(given | fields))


def judge(of: FleetState, proposal: Proposal, now: int = NOW) -> Verdict:
    """Ask the kernel, and check what holds of each of its words."""
    verdict = authorise(of, proposal, now)
    failed = [gate.name for gate in verdict.gates if not gate.passed]
    assert len(verdict.gates) == 11 and all(gate.detail for gate in verdict.gates)
    assert verdict.allowed == (not failed) and verdict.gate == (failed[0] if failed else "")
    assert verdict.allowed or verdict.effect == "none"
    return verdict


def detail(verdict: Verdict, gate: str) -> str:
    """What one gate said."""
    return next(each.detail for each in verdict.gates if each.name == gate)
