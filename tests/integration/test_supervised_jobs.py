"""The agent as supervisor: real process trees, an agent that is killed, a job that moves, a hold, a pause."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest
from integration.ingest_host import until
from integration.supervised import FENCE, Pair, action, marked, pair

from gpuvigil_collector.action import AmbiguousError, Fence, RefusedError
from gpuvigil_collector.actuators.supervisor import SupervisorActuator

JOBS = {"train": ("n1", "n2")}
START = {"job": "train", "action": "a0", "generation": "3", "attempt": "1"}


async def started(made: Pair, node: str = "n1") -> None:
    found = await made.ask(node, "supervise_start", START)
    assert found.accepted, found
    await until((made.shared / f"child-{node}").exists, "the job's child", 30)
    await until(made.steps, "steps", 20)


async def test_a_job_is_started_kept_over_a_killed_agent_and_stopped_whole(tmp_path: Path) -> None:
    async with pair(tmp_path) as made:
        await started(made)
        node = made.nodes["n1"]
        before = set(marked("n1"))
        assert len(before) == 3, "keeper, job, and the child in its own session"
        again = await made.ask("n1", "supervise_start", START)
        assert again.accepted and "runs already, started by this action" in again.outcome
        other = await made.ask("n1", "supervise_start", START | {"action": "b"})
        assert not other.accepted and "runs already, started by a0" in other.outcome
        node.agent.process.kill()
        node.agent.process.wait(10)
        count = len(made.steps())
        await until(lambda: len(made.steps()) > count + 5, "steps while there is no agent", 10)
        node.agent.start()
        await asyncio.sleep(0.5)
        await until(lambda: "agent_started" in node.agent.log.rpartition("no [tls]")[2], "the new agent", 30)
        await until_answered(made, "n1")
        look = json.loads((await made.ask("n1", "supervise_look", {"job": "train"})).outcome)
        assert (look["state"], look["action"], look["generation"]) == ("running", "a0", 3)
        assert set(marked("n1")) == before, "the very same processes"
        assert (node.state / "supervised/train.log").stat().st_size <= 16 << 10
        assert "step" in (node.state / "supervised/train.log").read_text()
        stopped = await made.ask("n1", "supervise_stop", {"job": "train", "generation": "3"})
        assert stopped.accepted and marked("n1") == []
        look = json.loads((await made.ask("n1", "supervise_look", {"job": "train"})).outcome)
        assert look["state"] == "ended"


async def until_answered(made: Pair, node: str) -> None:
    """Wait until a restarted agent's stream takes commands again."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if (await made.ask(node, "boot", {}, 2)).accepted:
                return
        except Exception:  # noqa: BLE001 - not yet
            continue
    raise AssertionError(f"{node} does not answer")


async def test_a_job_moves_to_the_healthy_node_and_its_old_processes_are_gone(tmp_path: Path) -> None:
    async with pair(tmp_path) as made:
        await started(made)
        actuator = SupervisorActuator(made.call, JOBS)
        move, hold = action("move_job", "n1", job="train"), action("hold", "n1", "a2")
        look = await asyncio.to_thread(actuator.look, move)
        assert look.state == "absent"
        said = await asyncio.to_thread(actuator.apply, hold, FENCE)
        assert said == "held for i-7"
        said = await asyncio.to_thread(actuator.apply, move, FENCE)
        assert said.startswith("n2: train started")
        await until(lambda: any(step[0] == "n2" for step in made.steps()), "steps on n2", 30)
        assert marked("n1") == [] and len(marked("n2")) >= 1
        after = made.steps().index(next(step for step in made.steps() if step[0] == "n2"))
        assert [step for step in made.steps()[after:] if step[0] == "n1"] == [], "never both at once"
        assert made.steps()[-1][1] == "3/2", "the next attempt, under the fence's generation"
        look = await asyncio.to_thread(actuator.look, move)
        assert (look.state, look.token) == ("done", "n2")
        assert "runs on n2" in await asyncio.to_thread(actuator.apply, move, FENCE), "again: no second effect"
        foreign = await asyncio.to_thread(actuator.look, action("move_job", "n1", "other", job="train"))
        assert foreign.state == "foreign"
        refused = await made.ask("n1", "supervise_start", START | {"generation": "3", "attempt": "5"})
        assert not refused.accepted and "the node is held for i-7" in refused.outcome
        stop = action("stop_job", "n2", "a3", job="train")
        assert (await asyncio.to_thread(actuator.look, stop)).state == "absent"
        await asyncio.to_thread(actuator.apply, stop, FENCE)
        assert (await asyncio.to_thread(actuator.look, stop)).state == "done" and marked() == []


async def test_a_job_is_not_stopped_for_nothing(tmp_path: Path) -> None:
    """The other node is held: nobody could take the job, so it goes on where it is."""
    async with pair(tmp_path) as made:
        await started(made)
        actuator = SupervisorActuator(made.call, JOBS)
        await asyncio.to_thread(actuator.apply, action("hold", "n2", "a2"), FENCE)
        with pytest.raises(RefusedError, match="no node can take train: n2: held"):
            await asyncio.to_thread(actuator.apply, action("move_job", "n1", job="train"), FENCE)
        assert marked("n1")
        made.nodes["n1"].agent.process.kill()
        made.nodes["n1"].agent.process.wait(10)
        await asyncio.to_thread(actuator.apply, action("release", "n2", "a4"), FENCE)
        with pytest.raises(RefusedError, match="whether train still runs on n1 is unknown"):
            await asyncio.to_thread(actuator.apply, action("move_job", "n1", job="train"), FENCE)
        dead = SupervisorActuator(made.call, JOBS, lambda node: node == "n1")
        said = await asyncio.to_thread(dead.apply, action("move_job", "n1", job="train"), FENCE)
        assert said.startswith("n2: train started"), "a node that is dead for certain keeps nothing"


async def test_holds_are_marked_owned_fenced_and_outlive_the_agent(tmp_path: Path) -> None:
    async with pair(tmp_path) as made:
        actuator = SupervisorActuator(made.call, JOBS)
        hold, release = action("hold", "n1"), action("release", "n1", "a9")
        assert (await asyncio.to_thread(actuator.look, hold)).state == "absent"
        assert (await asyncio.to_thread(actuator.look, release)).state == "done"
        await asyncio.to_thread(actuator.apply, hold, FENCE)
        await asyncio.to_thread(actuator.apply, hold, FENCE)
        node = made.nodes["n1"]
        [kept] = json.loads((node.state / "hold.json").read_text())["holds"]
        assert kept == {
            "incident": "i-7",
            "action": "a1",
            "generation": 3,
            "reason": "gpuvigil: Xid 79 on gpu2",
        }
        node.agent.process.kill()
        node.agent.process.wait(10)
        node.agent.start()
        await until_answered(made, "n1")
        assert (await asyncio.to_thread(actuator.look, hold)).state == "done"
        assert (await asyncio.to_thread(actuator.look, release)).state == "absent"
        stale = Fence(holder="old", generation=2, until_ns=1 << 62)
        with pytest.raises(RefusedError, match="generation: expected 3 or newer, got 2"):
            await asyncio.to_thread(actuator.apply, release, stale)
        await asyncio.to_thread(actuator.apply, release, FENCE)
        assert (await asyncio.to_thread(actuator.look, hold)).state == "absent"
        by_hand = {"holds": [{"incident": "swap NIC", "by": "anna", "reason": "until noon"}], "generation": 3}
        (node.state / "hold.json").write_text(json.dumps(by_hand))
        assert (await asyncio.to_thread(actuator.look, hold)).state == "foreign"
        for what in (hold, release):
            with pytest.raises(RefusedError, match="held by anna"):
                await asyncio.to_thread(actuator.apply, what, FENCE)
        assert json.loads((node.state / "hold.json").read_text()) == by_hand


async def test_r10_a_local_pause_refuses_every_effect_at_once_and_over_a_restart(tmp_path: Path) -> None:
    """Also while the collector is down: nothing here asks it."""
    async with pair(tmp_path) as made:
        await started(made)
        node = made.nodes["n1"]
        effects = [
            ("hold", {"incident": "i", "action": "a", "generation": "3"}),
            ("unhold", {"incident": "i", "generation": "3"}),
            ("supervise_start", START), ("supervise_stop", {"job": "train", "generation": "3"}),
            ("helper", {"order": "{}", "signature": ""}),
        ]  # fmt: skip
        for restart in (False, True):
            node.pause.write_text("anna: maintenance")
            if restart:
                node.agent.process.kill()
                node.agent.process.wait(10)
                node.agent.start()
                await until_answered(made, "n1")
            for verb, arguments in effects:
                found = await made.ask("n1", verb, arguments)
                assert not found.accepted, (verb, found)
                assert found.outcome == f"paused: {node.pause}: anna: maintenance"
            boot = json.loads((await made.ask("n1", "boot", {})).outcome)
            assert "pause: anna: maintenance" in boot["paused"] and boot["held"] == []
        assert marked("n1"), "a pause stops no job either"
        node.pause.unlink()
        assert (await made.ask("n1", "supervise_stop", {"job": "train", "generation": "3"})).accepted


async def test_only_what_the_config_names_can_be_started(tmp_path: Path) -> None:
    more = '[supervisor.jobs.gone]\ncommand = ["/no/such/program"]\n'
    more += '[supervisor.jobs.who]\ncommand = ["id"]\nuser = "nobody-here"\n'
    async with pair(tmp_path, more) as made:
        for arguments, why in (
            (START | {"job": "sh"}, "job: expected one of gone, train, who, got sh"),
            (START | {"job": "../x"}, "job: expected one of"),
            (START | {"generation": "x"}, "generation: expected a whole number"),
            (START | {"action": ""}, "action: expected"),
            (START | {"job": "who"}, "user: no user 'nobody-here' on this node"),
        ):
            found = await made.ask("n1", "supervise_start", arguments)
            assert not found.accepted and why in found.outcome, found
        assert (await made.ask("n1", "supervise_start", START | {"job": "gone"})).accepted
        look: dict = {}

        async def ended() -> bool:
            look.update(json.loads((await made.ask("n1", "supervise_look", {"job": "gone"})).outcome))
            return look["state"] == "ended"

        deadline = time.monotonic() + 20
        while not await ended():
            assert time.monotonic() < deadline, look
        assert look["status"] == 127
        log = (made.nodes["n1"].state / "supervised/gone.log").read_text()
        assert "/no/such/program: No such file" in log


async def test_processes_whose_keeper_was_killed_are_found_and_ended(tmp_path: Path) -> None:
    async with pair(tmp_path) as made:
        await started(made)
        os.kill(made.nodes["n1"].record()["pid"], signal.SIGKILL)
        child = int((made.shared / "child-n1").read_text())
        await asyncio.sleep(0.5)
        assert child in marked("n1")
        look = json.loads((await made.ask("n1", "supervise_look", {"job": "train"})).outcome)
        assert look["state"] == "orphaned"
        second = await made.ask("n1", "supervise_start", START | {"action": "b", "attempt": "2"})
        assert not second.accepted, "never a second one beside what is left of the first"
        assert (await made.ask("n1", "supervise_stop", {"job": "train", "generation": "3"})).accepted
        assert marked("n1") == []


async def test_an_operator_starts_a_job_that_runs_nowhere(tmp_path: Path) -> None:
    async with pair(tmp_path) as made:
        actuator = SupervisorActuator(made.call, JOBS)

        async def begin(node: str, name: str, avoid: frozenset[str] = frozenset()) -> str:
            return await asyncio.to_thread(actuator.begin, "train", node, name, FENCE, avoid)

        with pytest.raises(RefusedError, match="may run on n1, n2, not on n9"):
            await begin("n9", "start-0")
        with pytest.raises(RefusedError, match="n1 is held, paused or under maintenance"):
            await begin("n1", "start-0", frozenset({"n1"}))
        assert (await begin("", "start-1", frozenset({"n1"}))).startswith("n2: train started")
        await until(lambda: len(marked("n2")) >= 2, "the job on n2", 30)
        with pytest.raises(RefusedError, match="train runs on n2 already"):
            await begin("n1", "start-2")
        stopped = await made.ask("n2", "supervise_stop", {"job": "train", "generation": "3"})
        assert stopped.accepted, stopped
        await asyncio.to_thread(actuator.apply, action("hold", "n1", "a2"), FENCE)
        with pytest.raises(RefusedError, match="n1 is held"):
            await begin("n1", "start-3")
        made.nodes["n2"].agent.process.kill()
        made.nodes["n2"].agent.process.wait(10)
        with pytest.raises((RefusedError, AmbiguousError), match="n2"):
            await begin("n1", "start-4")
        assert marked() == []
