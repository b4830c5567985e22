"""S7 and S8: what a hostile agent and a hostile collector can make of the helper, and the verbs' own refusals."""

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
from unit.helper_world import GPU, LINKED, OTHER_GPU, World, write_keys

from gpuvigil_collector.actuators.helper import Signer
from gpuvigil_helper import config as configs
from gpuvigil_helper import ledger as ledgers
from gpuvigil_helper.config import Limits, Protected
from gpuvigil_protos import order as orders
from gpuvigil_protos.settings import ConfigError

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


# --- one GPU's reset, step by step
def test_evidence_is_kept_before_a_reset_and_everybody_is_back_after_it(world: World, tmp_path: Path) -> None:
    world.run_unit("dcgm.service")
    said = world.give("reset_gpu", GPU, action="case/3/1")
    assert said.state == "done" and world.look("case/3/1").effect == "done"
    words = [line for line in world.did() if not line.startswith("systemctl is-active")]
    assert [line.split()[0] for line in words] == ["links", "evidence", "systemctl", "reset", "systemctl"]
    assert words[2:] == ["systemctl stop -- dcgm.service", f"reset {GPU}", "systemctl start -- dcgm.service"]
    [file] = (tmp_path / "state/evidence").iterdir()
    assert "ECC 7" in file.read_text() and "case/3/1 i-1" in file.read_text()
    assert world.asked == [True, False]


def test_everybody_is_back_after_a_reset_that_failed(world: World, tmp_path: Path) -> None:
    """Only what ran is started again."""
    (tmp_path / "reset-fails").touch()
    unit = world.run_unit("dcgm.service")
    assert world.give("reset_gpu", GPU).state == "failed"
    assert unit.exists() and not (tmp_path / "units/persist.service").exists()
    assert world.asked == [True, False] and world.ledger.owed() == []


def test_what_could_not_be_started_again_is_owed_over_a_restart(world: World, tmp_path: Path) -> None:
    unit, broken = world.run_unit("dcgm.service"), world.run_unit("dcgm.service.broken")
    assert world.give("reset_gpu", GPU).state == "done"
    assert world.ledger.owed() == ["dcgm.service"] and not unit.exists()
    broken.unlink()
    world.ledger.close()
    world.start()
    assert world.ledger.owed() == [] and unit.exists()


def test_no_reset_without_evidence_on_disk(world: World, tmp_path: Path) -> None:
    (tmp_path / "state/evidence").write_text("a file stands where the folder should be")
    said = world.give("reset_gpu", GPU)
    assert said.state == "refused" and world.did("reset") == []


@pytest.mark.parametrize(("links", "capability", "fabric", "may"), [
    ("", "", False, True),
    ("GPU 0: NVIDIA L4\n\t Link 0: <inactive>\n", "", False, True),
    (LINKED, "9.0\n", False, True),
    (LINKED, "10.0\n", False, True),
    (LINKED, "8.0\n", False, False),
    (LINKED, "8.0\n", True, True),
    (LINKED, "7.0\n", True, False),
    (LINKED, "[N/A]\n", True, False),
    (LINKED, "", True, False),
    ("Unable to determine the device handle", "9.0\n", True, False),
])  # fmt: skip
def test_nvlink_may_forbid_the_reset_of_one_gpu(
    world: World, tmp_path: Path, links: str, capability: str, fabric: bool, may: bool
) -> None:
    (tmp_path / "links.txt").write_text(links)
    (tmp_path / "capability.txt").write_text(capability)
    if fabric:
        (tmp_path / "fabric-runs").touch()
    said = world.give("reset_gpu", GPU)
    assert said.state == ("done" if may else "refused"), said
    assert world.asked == ([True, False] if may else []), "nobody lets go for a reset that may not be"


# --- after a crash
def test_a_reboot_is_known_by_its_boot_id(world: World) -> None:
    world.give("reboot", action="r1")
    assert world.look("r1").effect == "intended"
    world.ledger.close()
    world.start()
    assert world.look("r1").effect == "intended", "the same boot: it has not happened yet"
    world.ledger._db.execute("UPDATE effects SET up_ns = up_ns - 3600000000000")
    assert world.look("r1").effect == "failed", "it did not come"
    world.give("reboot", action="r2")
    world.ledger.close()
    world.start("99999999-2222-3333-4444-555555555555")
    assert (world.look("r2").effect, world.look("r2").detail) == ("done", "rebooted")


def test_a_reset_in_the_middle_of_which_the_helper_ended_is_unknown(world: World) -> None:
    world.ledger.begin(world.order("reset_gpu", GPU, action="x"))
    world.ledger.let_go("dcgm.service")
    world.ledger.close()
    world.start()
    assert world.look("x").effect == "unknown"
    assert world.did("systemctl") == ["systemctl start -- dcgm.service"]
    assert "limit" in world.give("reset_gpu", GPU).outcome, "and it counts"


def test_holds_belong_to_their_incident(world: World) -> None:
    assert world.give("hold", incident="i-1").state == "done"
    assert world.give("hold", incident="i-2").outcome == "held already for i-1"
    assert world.give("unhold", incident="i-2").state == "refused"
    Path(world.config.state_directory, "held").write_text("kept by hand")
    assert world.give("unhold", incident="i-1").outcome == "held for a person, not for i-1"
    assert world.look().held == "a person"


# --- R10
def test_r10_a_pause_refuses_every_verb_at_once_and_over_a_restart(world: World, tmp_path: Path) -> None:
    verbs = [
        ("reset_gpu", GPU),
        ("reboot", ""),
        ("stop_unit", "train-a.service"),
        ("hold", ""),
        ("unhold", ""),
    ]
    (tmp_path / "pause").write_text("ticket 7\n")
    for _ in range(2):
        for verb, target in verbs:
            said = world.give(verb, target)
            assert said.state == "refused" and said.outcome == f"paused: {tmp_path}/pause: ticket 7"
        assert world.look().paused.endswith("ticket 7")
        world.ledger.close()
        world.start()
    assert world.did() == []
    (tmp_path / "pause").unlink()
    assert world.give("hold").state == "done"
