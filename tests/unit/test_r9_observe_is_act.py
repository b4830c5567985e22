"""R9: observe and act decide alike, word for word, and observe has no effect: 1,000 seeded scenarios.

Judged from outside the desk: what an executor and a save desk were asked, and the kernel's own verdicts on
the states that act mode saw, replayed with the mode alone changed.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from unit.repair_world import SECOND, START, Effects, Memory, Saves

from gpuvigil_collector import policy, safety
from gpuvigil_collector.action import Fence, FleetState, JobState, NodeState, Proposal, Verdict
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.repair.desk import RepairDesk
from gpuvigil_collector.repair.hands import SafeHands
from gpuvigil_collector.repair.needs import Scenery
from gpuvigil_collector.repair.store import Kept
from gpuvigil_detectors.base import Evidence, Finding

SCENARIOS = 1000
TICKS = 12
ORIGINS = ("driver", "host", "job", "agent", "kernel_log", "statistics")
Seen = list[tuple[FleetState, Proposal, int, Verdict]]


def scene(
    seed: int,
) -> tuple[dict[str, NodeState], dict[str, JobState], dict[str, Incident], dict[str, object]]:
    """A small fleet with jobs, faults of every kind of evidence, and things that forbid."""
    dice = random.Random(seed)
    count = dice.randint(2, 12)
    names = [f"n{i}" for i in range(count)]
    jobs = {}
    for number in range(dice.randint(0, 3)):
        on = tuple(sorted(dice.sample(names, dice.randint(1, min(3, count)))))
        refusals = ("not_opted_in",) if dice.random() < 0.3 else ()
        jobs[f"j{number}"] = JobState(job=f"j{number}", nodes=on, gpus=8 * len(on), refusals=refusals)
    nodes = {
        name: NodeState(
            node=name, gpus=8, partition=dice.choice(["", "p1"]), domain=f"rack{i // 3}",
            silent=dice.random() < 0.1, maintenance="ann: cable" if dice.random() < 0.1 else "",
            hold=dice.choice(["none"] * 8 + ["foreign"]), held_why="bob", gpu_uuids=(f"GPU-{name}",),
            jobs=tuple(job for job, state in jobs.items() if name in state.nodes),
        )
        for i, name in enumerate(names)
    }  # fmt: skip
    open_ = {}
    for number in range(dice.randint(1, 4)):
        node = dice.choice(names)
        open_[f"i{number}"] = incident(dice, f"i{number}", node)
    more: dict[str, object] = {
        "paused": "eve: wait" if dice.random() < 0.1 else "",
        "breaker_ns": START if dice.random() < 0.1 else 0,
        "fence": None if dice.random() < 0.1 else "ours",
    }
    return nodes, jobs, open_, more


def incident(dice: random.Random, name: str, node: str) -> Incident:
    fault = dice.choice(["gpu_lost", "ecc_uncorrectable", "nic_down", "thermal", "row_remap_pending", "hang"])
    target = f"{node}/gpu:GPU-{node}"
    findings = tuple(
        Finding(
            detector="rules", rule=f"r{i}", entity=target, fault_class=fault, severity="critical",
            start_ns=START, end_ns=START, sentence="it broke", origin=dice.choice(ORIGINS),
            evidence=Evidence(facts=(("fatal", dice.choice(["yes", "no"])),)),
        )
        for i in range(dice.randint(1, 3))
    )  # fmt: skip
    return Incident(
        id=name, fingerprint=f"f{name}", fault_class=fault, scope="gpu", severity="critical", state="open",
        node=node, target=target, cause="it broke", lead_start_ns=START, opened_ns=START, seen_ns=START,
        findings=findings,
    )  # fmt: skip


def play(seed: int, mode: str) -> tuple[Effects, Saves, Seen, list[str]]:
    """Run one scenario through the whole desk; return what an outsider saw and what the kernel was asked."""
    nodes, jobs, open_, more = scene(seed)
    effects, saves, seen, told = Effects(), Saves(), [], []

    def judge(state: FleetState, proposal: Proposal, now_ns: int) -> Verdict:
        verdict = safety.authorise(state, proposal, now_ns)
        seen.append((state, proposal, now_ns, verdict))
        return verdict

    kept = Kept(Memory())
    kept.load()
    hands = SafeHands(
        kept=kept, executor=effects, saves=saves, judge=judge,
        note=lambda notes: told.extend(f"{one.what} {one.detail}" for one in notes),
        keep_evidence=lambda _case, _incident: None, clean_wait_base_s=60.0, approval_s=3600.0,
    )  # fmt: skip
    desk = RepairDesk(policy.load(), hands)
    for tick in range(TICKS):
        now_ns = START + tick * SECOND
        fence = Fence(holder="us", generation=1, until_ns=now_ns + 30 * SECOND) if more["fence"] else None
        ours = {name: replace(node, hold="ours") for name, node in nodes.items()
                if any(case.held and case.node == name for case in kept.cases.values())}  # fmt: skip
        state = FleetState(
            mode=mode, nodes=nodes | ours, jobs=jobs, past=(), others="", fence=fence,
            actionable=desk.actionable(now_ns, 600.0), paused=more["paused"], breaker_ns=more["breaker_ns"],
        )  # type: ignore[arg-type]  # fmt: skip
        desk.tick(Scenery(now_ns=now_ns, open=open_, state=state))
    return effects, saves, seen, told


@pytest.fixture(scope="module")
def played() -> list[
    tuple[int, tuple[Effects, Saves, Seen, list[str]], tuple[Effects, Saves, Seen, list[str]]]
]:
    return [(seed, play(seed, "act"), play(seed, "observe")) for seed in range(SCENARIOS)]


def test_r9_observe_has_no_effect_where_act_has_many(played, record_property) -> None:
    acted = sum(len(act[0].asked) + len(act[1].asked) for _, act, _ in played)
    assert acted > SCENARIOS / 4, "the scenarios must give act something to do"
    for seed, _, observe in played:
        assert (observe[0].asked, observe[1].asked) == ([], []), seed
    record_property("n", len(played))


def test_r9_every_decision_of_act_is_the_same_in_observe(played, record_property) -> None:
    decisions = denied = 0
    for seed, (_, _, seen, _), _ in played:
        for state, proposal, now_ns, verdict in seen:
            again = safety.authorise(replace(state, mode="observe"), proposal, now_ns)
            assert (again.allowed, again.gate, again.gates) == (
                verdict.allowed,
                verdict.gate,
                verdict.gates,
            ), seed
            assert again.effect == "none"
            decisions, denied = decisions + 1, denied + (not verdict.allowed)
    record_property("n", decisions)
    assert decisions > 2 * SCENARIOS and 0.2 < denied / decisions < 0.95


def test_r9_the_first_decision_on_each_case_is_the_same_through_the_whole_desk(played) -> None:
    for seed, (_, _, act, _), (_, _, observe, _) in played:
        asked, would = first_words(act), first_words(observe)  # observe waits for nothing: it goes on at once
        assert asked == {key: would.get(key) for key in asked}, seed


def first_words(seen: Seen) -> dict[tuple[str, str], tuple[bool, str, tuple[object, ...]]]:
    """The kernel's first word on each incident and kind, while both modes have seen the same world."""
    found: dict[tuple[str, str], tuple[bool, str, tuple[object, ...]]] = {}
    for _, proposal, now_ns, verdict in seen:
        if now_ns == START:
            found.setdefault(
                (proposal.incident, proposal.kind), (verdict.allowed, verdict.gate, verdict.gates)
            )
    return found
