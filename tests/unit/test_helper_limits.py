"""S7 and S8: what a hostile agent and a hostile collector can make of the helper."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from unit.helper_world import GPU, OTHER_GPU, World, write_keys

from gpuvigil_collector.actuators.helper import Signer
from gpuvigil_helper import config as configs
from gpuvigil_helper import ledger as ledgers
from gpuvigil_helper.config import Limits, Protected
from gpuvigil_protos import order as orders
from gpuvigil_protos.settings import ConfigError

pytestmark = pytest.mark.needs_root  # only root sees whose process holds a GPU; to the helper unseen is held
HOUR_NS = 3_600_000_000_000


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def hour_passes(world: World, hours: float = 1.01) -> None:
    """Let the ledger's past be older, by both clocks."""
    world.ledger._db.execute(
        "UPDATE effects SET at_ns = at_ns - ?, up_ns = up_ns - ?", (int(hours * HOUR_NS),) * 2
    )


# --- S7: the agent has its own rights and no key
def test_s7_a_hostile_agent_resets_nothing_without_an_order(world: World, tmp_path: Path) -> None:
    """With a key of its own, with no signature, with the public key's bytes, with orders it saw: nothing."""
    own = tmp_path / "agents-own"
    own.mkdir()
    write_keys(own)
    seen = world.sign(world.order("reset_gpu", GPU))
    assert world.say(seen).state == "done"
    forger = Signer(own / "collector.key")
    text = orders.encode(world.order("reset_gpu", OTHER_GPU))
    forged = [
        world.message(text, forger._key.sign(orders.signed_bytes(text)).hex()),
        world.message(text, ""),
        world.message(text, "0" * 128),
        world.message(text, json.loads(seen)["signature"]),
        world.message(text, world.signer._key.sign(text).hex()),  # over the text without its prefix
        msgspec.json.encode({"ask": "order", "order": text.decode(), "signature": "0" * 128, "act": True}),
        msgspec.json.encode({"ask": "look", "action": "a", "limits": 9}),
        seen,
    ]
    for message in forged:
        assert world.say(message).state == "refused"
    assert world.did("reset") == [f"reset {GPU}"]


def test_s7_a_hostile_agent_cannot_raise_a_limit_by_lying_about_the_gpus(world: World) -> None:
    """It says that it let go while it holds the device: the helper looks itself."""
    with world.device.open():
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys, time; sys.stdin.read()"], stdin=subprocess.PIPE,
            pass_fds=(os.open(world.device, os.O_RDONLY),),
        )  # fmt: skip
    try:
        said = world.give("reset_gpu", GPU)
    finally:
        child.kill()
        child.wait()
    assert said.state == "refused" and f"(pid {child.pid})" in said.outcome
    assert world.did("reset") == [] and world.look().effect == "none"


def test_s7_an_agent_that_does_not_let_go_gets_no_reset(world: World) -> None:
    world.agent_lets_go = False
    assert "did not let go" in world.give("reset_gpu", GPU).outcome
    assert world.did("reset") == [] and world.asked == [True, False]


@pytest.mark.parametrize("text", [
    "[limits]\nresets_a_gpu_an_hour = 2", "[limits]\nreboots_a_day = 3", "[limits]\nstops_an_hour = 7",
    "[limits]\nreboots_a_day = -1", "act = 1", "akt = true", '[stop]\nallow = "("', "[reset]\ncommand = []",
    '[reset]\ndeadline = "1h"', 'node = "a b"',
])  # fmt: skip
def test_limits_cannot_be_raised_and_mistakes_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "helper.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"helper\.toml: "):
        configs.load(file)


# --- S8: the collector is hostile and has the real key
def test_s8_one_reset_a_gpu_an_hour_whatever_is_signed(world: World) -> None:
    """1,000 sound orders over 20 hours: 20 resets of each GPU at most, and exactly that many."""
    chance = random.Random(8)
    done = {GPU: 0, OTHER_GPU: 0}
    for number in range(1000):
        if number % 50 == 0:
            hour_passes(world)
        gpu = chance.choice([GPU, OTHER_GPU])
        said = world.give("reset_gpu", gpu, generation=5 + number, incident=f"i-{number}")
        assert said.state in ("done", "refused")
        done[gpu] += said.state == "done"
    assert done == {GPU: 20, OTHER_GPU: 20}
    assert len(world.did("reset")) == 40


def test_s8_two_reboots_a_day_whatever_is_signed(world: World) -> None:
    for day in range(1, 21):
        states = [world.give("reboot").state for _ in range(50)]
        assert states == ["intended", "intended", *["refused"] * 48]
        assert len(world.did("reboot")) == 2 * day
        world.ledger.close()
        world.start(f"{day:08}-2222-3333-4444-555555555555")
        assert world.give("reboot").state == "refused", "a reboot frees no limit"
        hour_passes(world, 24.01)


def test_s8_a_clock_that_is_set_frees_no_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set forward: the time since boot tells; set back: what is in the future counts."""
    assert world.give("reset_gpu", GPU).state == "done"
    real = time.time_ns
    for shift in (100 * HOUR_NS, -100 * HOUR_NS):
        monkeypatch.setattr(ledgers.time, "time_ns", lambda shift=shift: real() + shift)
        assert world.ledger.within("reset_gpu", GPU, 3600)


def test_s8_a_failed_reset_uses_the_limit_up(world: World, tmp_path: Path) -> None:
    (tmp_path / "reset-fails").touch()
    assert world.give("reset_gpu", GPU).state == "failed"
    assert "limit of this node" in world.give("reset_gpu", GPU).outcome


@pytest.mark.parametrize(
    ("verb", "target"), [("reset_gpu", GPU), ("reboot", ""), ("stop_unit", "train-a.service")]
)
def test_s8_nothing_is_interrupted_while_a_protected_job_runs(tmp_path: Path, verb: str, target: str) -> None:
    """By its unit, by a path that exists while it runs, and where nobody can tell."""
    protected = Protected(units=("exam-7.service",), paths=(f"{tmp_path}/cgroup/job_*",))
    world = World(tmp_path, protected=protected)
    unit = world.run_unit("exam-7.service")
    assert "a protected job runs: exam-7.service" in world.give(verb, target).outcome
    unit.unlink()
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/job_42").mkdir()
    assert "a protected job runs" in world.give(verb, target).outcome
    (tmp_path / "cgroup/job_42").rmdir()
    systemctl = Path(world.config.systemctl[0])
    words = systemctl.read_text()
    systemctl.write_text("#!/bin/sh\nexit 1\n")
    assert "cannot be told" in world.give(verb, target).outcome
    systemctl.write_text(words)
    assert world.give(verb, target).state in ("done", "intended"), "the refusals above were for this reason"


@pytest.mark.parametrize(
    "unit", ["ssh.service", "train-a.service.d", "gpuvigil-agent.service", "train-a.mount"]
)
def test_s8_only_allowed_units_are_stopped(world: World, unit: str) -> None:
    file = world.run_unit(unit)
    assert world.give("stop_unit", unit).outcome == f"target: unit {unit} is not allowed by stop.allow"
    assert file.exists()
    assert world.look(unit=unit).unit == "", "and nothing is told of them"


def test_s8_lowered_limits_hold(tmp_path: Path) -> None:
    world = World(tmp_path, limits=Limits(resets_a_gpu_an_hour=0, reboots_a_day=0, stops_an_hour=0))
    for verb, target in (("reset_gpu", GPU), ("reboot", ""), ("stop_unit", "train-a.service")):
        assert "limit of this node: 0" in world.give(verb, target).outcome
    assert world.did("re") == []


def test_act_is_off_until_a_person_turns_it_on(tmp_path: Path) -> None:
    """The default answers what it would do; an order used up there cannot be used later."""
    assert configs.load(None).act is False
    world = World(tmp_path, act=False)
    message = world.sign(world.order("reset_gpu", GPU))
    said = world.say(message)
    assert (said.accepted, said.state) == (False, "would")
    assert said.outcome == f"would reset_gpu {GPU}; act is off in this node's config"
    world.config = msgspec.structs.replace(world.config, act=True)
    world.start()
    assert world.say(message).state == "refused"
    assert world.did("re") == []
