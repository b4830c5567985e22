"""The simulation as a test: 10,000 seeds a run of the suite, and that its judge is not asleep."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
from sim import fleet_sim
from sim.fleet_sim import FLOOR, PATTERNS, Sim, run
from sim.judge import Judge
from sim.world import BEGIN, HOUR, MINUTE, SECOND, Effect, World

SEEDS = int(os.environ.get("GPUVIGIL_SIM_SEEDS", "10000"))
PARTS = 20


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_r1_r2_r5_r11_r13_the_kernel_keeps_every_promise(part, record_property):
    seeds = range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS)
    results = [run(seed) for seed in seeds]
    wrong = [(each.seed, each.wrong) for each in results if each.wrong]
    record_property("n", len(results))
    record_property("wrong", len(wrong))
    assert wrong == []
    assert sum(each.effects for each in results) > len(results), "a kernel that never acts proves nothing"
    assert len(results) < 200 or {each.pattern for each in results} == set(PATTERNS)


@pytest.mark.parametrize("size", FLOOR)
def test_r1_liveness_floor_one_true_fault_is_repaired(size, record_property):
    results = [each for each in (run(seed, pattern="single") for seed in range(200)) if each.size == size]
    assert len(results) > 20
    record_property("n", len(results))
    record_property("wrong", sum(not each.repaired for each in results))
    assert all(each.repaired and {"hold", "release"} <= set(each.done) for each in results)
    assert all({"reset_gpu", "reboot"} & set(each.done) for each in results)


def test_a_fleet_of_ten_thousand():
    sim = Sim(0, "waves")
    sim.size, sim.chaos = 10_000, ("wild",)
    sim.world = World(random.Random(0), 10_000, 500, 3)
    sim.judge = Judge(sim.world)
    for number in range(4):
        sim.step(number)
    assert sim.judge.wrong == [] and sim.asked >= 4


def test_a_seed_is_the_same_each_time():
    assert [run(seed) for seed in range(30)] == [run(seed) for seed in range(30)]


def test_r9_a_thousand_scenarios_are_judged_alike_in_observe(monkeypatch, record_property):
    seen = []

    def both(state, proposal, now_ns):
        verdict = AUTHORISE(state, proposal, now_ns)
        if state.mode in ("observe", "recommend", "act") and isinstance(state.partition_modes, dict):
            quiet = replace(
                state, mode="observe", partition_modes=dict.fromkeys(state.partition_modes, "observe")
            )
            other = AUTHORISE(quiet, proposal, now_ns)
            assert other.effect == "none" and replace(other, effect=verdict.effect) == verdict
            seen.append(verdict.effect)
        return verdict

    monkeypatch.setattr(fleet_sim, "authorise", both)
    assert all(not run(seed, steps=6).wrong for seed in range(1000))
    record_property("n", len(seen))
    assert seen.count("act") > 500 and seen.count("none") > 5000


def everything(state, proposal, now_ns):
    """A kernel that allows whatever it is asked."""
    verdict = AUTHORISE(state, proposal, now_ns)
    return replace(verdict, allowed=True, gate="", effect="act", trips_breaker=False)


AUTHORISE = fleet_sim.authorise


def test_the_judge_finds_a_kernel_that_allows_everything(monkeypatch):
    monkeypatch.setattr(fleet_sim, "authorise", everything)
    found = {each.wrong[0].split(" ")[-1] for each in (run(seed) for seed in range(300)) if each.wrong}
    assert len(found) > 15


def test_the_judge_finds_a_kernel_that_never_acts(monkeypatch):
    monkeypatch.setattr(
        fleet_sim, "authorise", lambda *a: replace(AUTHORISE(*a), allowed=False, effect="none")
    )
    assert all(run(seed, pattern="single").wrong for seed in range(20))


def test_the_judge_counts_hours_and_shares_itself():
    world = World(random.Random(1), 20, 4, 1)
    world.lease.renew("a", BEGIN, BEGIN)
    judge, fatal = Judge(world), type("P", (), {"synthetic": False, "evidence": ()})
    fatal.evidence = (type("S", (), {"origin": "driver", "fatal": True, "synthetic": False}),)

    def effect(number, node, at, ended=()):
        return Effect(f"e{number}", f"c{number}", "hold", node, "", at, "a", 1, False, ended)

    world.happen(effect(1, "n0", BEGIN))
    judge.before(effect(2, "n5", BEGIN + 20 * SECOND), fatal, True)
    assert judge.wrong == ["2 of 20 held", "2 of 20 held"]
    judge.wrong.clear()
    world.touch("n0").mark = ""
    judge.before(effect(3, "n1", BEGIN + 20 * SECOND), fatal, True)
    assert judge.wrong == ["two nodes of a domain in half an hour"]
    judge.wrong.clear()
    judge.before(effect(4, "n1", BEGIN + 30 * MINUTE), fatal, True)
    assert judge.wrong == ["hold by a leader whose lease had ended"]
    judge.wrong.clear()
    world.effects.append(effect(5, "n9", BEGIN, (("j", 4),)))
    judge.before(effect(6, "n19", BEGIN + HOUR - 1, (("j", 1),)), fatal, True)
    assert {"too many jobs an hour", "a job twice an hour"} <= set(judge.wrong)
