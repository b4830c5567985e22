"""A reset step by step, what a crash leaves behind, holds, and the local pause (R10) at the helper's desk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from unit.helper_world import GPU, LINKED, World

pytestmark = pytest.mark.needs_root  # only root sees whose process holds a GPU; to the helper unseen is held


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


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


def test_an_action_is_carried_out_once_whatever_is_signed_for_it(world: World, tmp_path: Path) -> None:
    """A new nonce for the same action is no new effect; one that failed may be tried again."""
    first, second = (world.give("reboot", action="b1") for _ in range(2))
    assert (first.state, second.state) == ("intended", "intended") and world.did("reboot") == ["reboot"]
    world.run_unit("train-a.service")
    assert world.give("stop_unit", "train-a.service", action="s1").state == "done"
    again = world.give("stop_unit", "train-a.service", action="s1")
    assert again.state == "done" and "before" in again.outcome
    assert len(world.did("systemctl stop")) == 1
    (tmp_path / "reset-fails").touch()
    assert world.give("reset_gpu", GPU, action="r1").state == "failed"
    (tmp_path / "reset-fails").unlink()
    world.ledger._db.execute("UPDATE effects SET at_ns = 0, up_ns = -9000000000000000")
    assert world.give("reset_gpu", GPU, action="r1").state == "done"
    assert world.give("reset_gpu", GPU, action="r1").state == "done"
    assert len(world.did("reset")) == 2


def test_an_order_that_expires_while_it_is_prepared_has_no_effect(world: World, tmp_path: Path) -> None:
    """A lease that ends while evidence is taken: the old holder resets nothing any more."""
    evidence = Path(world.config.reset.evidence[0])
    evidence.write_text("#!/bin/sh\nsleep 1.5\n")
    unit = world.run_unit("dcgm.service")
    said = world.give("reset_gpu", GPU, expires_ns=time.time_ns() + 1_000_000_000)
    assert said.state == "refused" and "expired while" in said.outcome
    assert world.did("reset") == [] and unit.exists() and world.asked == [True, False]


def test_a_pause_that_comes_while_a_reset_is_prepared_stops_it(world: World, tmp_path: Path) -> None:
    """R10: the last look is right before the effect."""
    evidence = Path(world.config.reset.evidence[0])
    evidence.write_text(f"#!/bin/sh\necho anna > {tmp_path}/pause\n")
    unit = world.run_unit("dcgm.service")
    assert world.give("reset_gpu", GPU).outcome.startswith("paused: ")
    assert world.did("reset") == [] and unit.exists()


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
