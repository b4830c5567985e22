"""Commands of the collector at a real agent: launchers and savers are asked, all else is told why not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from integration.ingest_host import until
from integration.stack import environment
from integration.test_hook_agent import Stack, stack

from gpuvigil.launcher_link import LauncherLink
from gpuvigil_collector.ingest.frames import Command, Result

SAVES = """
import sys, time
from gpuvigil import monitor
from gpuvigil.saver import Saver
saver = Saver(sys.argv[2], lambda folder: (folder / "state").write_bytes(b"x" * 100), every=2)
for step in range(int(sys.argv[1])):
    with monitor.step():
        time.sleep(0.02)
    saver.step(step)
"""


async def ask(made: Stack, verb: str, id_: str, within_s: float = 20, **arguments: str) -> Result:
    """Send a command down and wait for the agent's answer."""
    seconds = float(arguments.pop("deadline_s", "30"))
    found: list[Result] = []

    def answered() -> bool:
        found.extend(made.host.store.results())
        return any(result.id == id_[:100] for result in found)

    deadline = time.time_ns() + int(seconds * 1e9)
    made.host.ingest.send(Command("n1", id_, verb, arguments, deadline))
    await until(answered, f"an answer to {verb}", within_s)
    return next(result for result in found if result.id == id_[:100])


async def connected(made: Stack) -> None:
    await until(lambda: made.host.store.snapshot(time.time_ns()).nodes.get("n1"), "the agent's stream", 30)


@pytest.mark.parametrize(("verb", "arguments", "why"), [
    ("reboot", {"job": "j1"}, "unknown verb 'reboot'"),
    ("save", {"job": "a/b", "number": "1"}, "job: expected letters"),
    ("save", {"job": "j1", "number": "-3"}, "number: expected a whole number"),
    ("save", {"job": "j1", "number": "9" * 40}, "number: expected a whole number"),
    ("save", {"job": "j1", "number": "1", "deadline_s": "-5"}, "deadline_ns: it has passed"),
    ("save", {"job": "j1", "number": "1"}, "no rank of job j1 runs here"),
    ("evidence", {"job": "j1", "number": "x"}, "number: expected a whole number"),
    ("evidence", {"job": "j1", "number": "1"}, "no rank of the job runs here"),
    ("restart", {"job": "j1"}, "no `gpuvigil run` of it on this node"),
])  # fmt: skip
async def test_what_cannot_be_done_is_answered_with_the_reason(tmp_path: Path, verb, arguments, why) -> None:
    async with stack(tmp_path) as made:
        await connected(made)
        found = await ask(made, verb, "r1", **arguments)
        assert not found.accepted and why in found.outcome


async def test_a_rank_saves_when_it_is_asked_and_only_where_its_owner_lets_it(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        await connected(made)
        made.loop(0)
        await until(lambda: made.told("rank_up"), "rank 0", 30)
        found = await ask(made, "save", "r1", job="j1", number="5")
        assert not found.accepted and "none of 1 ranks of job j1 saves on request" in found.outcome
        env = environment() | {"GPUVIGIL_SOCKET": str(made.path), "GPUVIGIL_JOB": "j2"}
        command = [sys.executable, "-c", SAVES, "100000", str(tmp_path / "checkpoints")]
        made.loops.append(subprocess.Popen(command, env=env))
        await until(lambda: [e for e in made.of("rank_up") if e.fields.get("on_request") == "save"], "it", 30)
        found = await ask(made, "save", "r2", job="j2", number="6")
        assert found.accepted and found.outcome == "armed 1 of 1 ranks"
        await until(lambda: made.of("checkpoint"), "the checkpoint", 20)
        [told] = made.of("checkpoint")
        assert (told.fields["outcome"], told.fields["request"], told.entity) == ("saved", "r2", "rank:j2/0")
        assert Path(told.fields["path"], "COMPLETE.json").exists()
        assert (await ask(made, "save", "r3", job="j2", number="6")).accepted, "the same number again"
        time.sleep(1.0)
        assert len(made.of("checkpoint")) == 1, "is no new request"


async def test_a_launcher_is_asked_and_another_users_is_not_taken_for_it(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        await connected(made)
        asked: list[dict] = []
        env = {"GPUVIGIL_SOCKET": str(made.path), "GPUVIGIL_JOB": "j1"}
        link = LauncherLink(env, lambda word: bool(asked.append(word)) or True)
        link.start()
        await until(lambda: link._socket is not None, "the launcher's registration", 20)
        found = await ask(made, "restart", "r7", job="j1")
        assert found.accepted
        await until(lambda: asked, "the launcher's word", 10)
        assert asked == [{"command": "restart", "id": "r7"}]
        link.tell({"event": "parked", "attempts": 3, "step": 120})
        await until(lambda: made.of("hook"), "the parking", 10)
        assert made.of("hook")[0].text.startswith("job j1 is parked: 3 attempts brought no checkpoint")
        if os.getuid() == 0:
            tmp_path.chmod(0o755)
            liar = [sys.executable, "-c", LIAR, str(tmp_path)]
            done = subprocess.run(liar, env=environment(), capture_output=True, text=True, timeout=30)
            assert "has one of another user" in done.stdout, done.stderr
        link.close()


LIAR = """
import json, os, socket, sys
os.chdir(sys.argv[1])  # a folder above it may be closed to others
os.setuid(65534)
made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
made.settimeout(5)
made.connect("hook.sock")
made.send(json.dumps({"protocol": 1, "launcher": "j1"}).encode())
print(made.recv(4096).decode())
"""
