"""The hook of a real process, a real agent, a real ingest: steps arrive, ends are told, liars are refused."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from integration.agent_process import AgentProcess, ended
from integration.ingest_host import Host, until
from integration.stack import environment

from gpuvigil import layout
from gpuvigil.ring import Control, Ring
from gpuvigil_detectors.training import standing

LOOP = """
import sys, time
from gpuvigil import monitor
for number in range(int(sys.argv[1])):
    with monitor.phase("data"):
        time.sleep(0.01)
    with monitor.step() as step:
        with monitor.phase("forward"):
            time.sleep(0.04)
        step.log(loss=2.0 / (number + 1), tokens=512)
"""
WITHIN_S = 40
REFUSED = 'gpuvigil_agent_hook_refused_total{node="n1",'


class Stack:
    """One ingest, one agent with its hook socket, and the loops that a test starts."""

    def __init__(self, folder: Path, host: Host, gpus: int = 1, simulate: str = "") -> None:
        self.host, self.path = host, folder / "hook.sock"
        port = int(host.address.rpartition(":")[2])
        self.agent = AgentProcess(folder, port, f'[hook]\nsocket = "{self.path}"', gpus)
        with self.agent.config.open("a") as config:
            config.write(simulate)
        self.loops: list[subprocess.Popen[bytes]] = []
        self.events: list = []
        self.steps: list = []

    def loop(
        self, rank: int = 0, steps: int = 100_000, code: str = LOOP, **more: str
    ) -> subprocess.Popen[bytes]:
        env = environment() | {"GPUVIGIL_SOCKET": str(self.path), "GPUVIGIL_JOB": "j1", "RANK": str(rank),
                               "WORLD_SIZE": "2"} | more  # fmt: skip
        process = subprocess.Popen([sys.executable, "-c", code, str(steps)], env=env)
        self.loops.append(process)
        return process

    def look(self) -> None:
        snapshot = self.host.store.snapshot(time.time_ns())
        self.events += snapshot.events
        self.steps += snapshot.steps

    def of(self, kind: str) -> list:
        self.look()
        return [event for event in self.events if event.kind == kind]

    def told(self, kind: str, rank: int = 0) -> list:
        return [event for event in self.of(kind) if event.entity == f"rank:j1/{rank}"]

    def rows(self, metric: str, rank: int = 0) -> list[float]:
        self.look()
        found = [rows for rows in self.steps if rows.entity == f"rank:j1/{rank}"]
        return [float(v) for rows in found for v in rows.values[:, rows.metrics.index(metric)]]


@asynccontextmanager
async def stack(folder: Path, gpus: int = 1, simulate: str = "") -> AsyncIterator[Stack]:
    with Host(folder / "collector") as host:
        made = Stack(folder, host, gpus, simulate)
        made.agent.start()
        try:
            await until(made.path.exists, "the hook's socket", WITHIN_S)
            yield made
        finally:
            for process in (*made.loops, made.agent.process):
                if process.poll() is None:
                    process.kill()
                process.wait(10)


async def test_two_ranks_from_first_step_to_their_ends(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        first, second = made.loop(0), made.loop(1, steps=60)
        await until(lambda: len(made.rows("rank_step")) > 20, "steps of rank 0", WITHIN_S)
        numbers = made.rows("rank_step")
        assert numbers == list(range(int(numbers[0]), int(numbers[0]) + len(numbers))), "each step once"
        assert all(0.04 <= seconds < 1 for seconds in made.rows("rank_step_seconds"))
        assert all(0.03 < seconds < 1 for seconds in made.rows("rank_forward_seconds"))
        assert made.rows("rank_tokens")[0] == 512
        [up] = made.told("rank_up")
        assert (up.origin, up.fields["world_size"], up.fields["uid"]) == ("job", "2", str(os.getuid()))
        assert made.agent.metric('gpuvigil_rank_step{node="n1",rank="0",training_job="j1"}') >= 20
        assert 0 < made.agent.metric('gpuvigil_rank_loss{node="n1",rank="0",training_job="j1"}') < 0.1
        assert second.wait(30) == 0
        await until(lambda: made.told("rank_down", 1), "the end of rank 1", 10)
        assert made.told("rank_down", 1)[0].fields["reason"] == "exit"
        began = time.monotonic()
        first.send_signal(signal.SIGKILL)
        await until(lambda: made.told("rank_down"), "the death of rank 0", 6)
        assert time.monotonic() - began < 6, "promised within 2 s"
        down = made.told("rank_down")[0]
        assert (down.fields["reason"], down.fields["phase"]) in {("died", "forward"), ("died", "data")}
        assert float(down.fields["step"]) >= 20


RAISES = (
    LOOP
    + """
raise RuntimeError("CUDA error: device-side assert")
"""
)


async def test_an_exception_that_nothing_caught_is_a_death(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        assert made.loop(0, steps=30, code=RAISES).wait(30) == 1
        await until(lambda: made.told("rank_down"), "the end of rank 0", 10)
        assert made.told("rank_down")[0].fields["reason"] == "died"


STANDS = LOOP.replace("for number", "from gpuvigil import collectives\ncollectives.progress = lambda: "
    '[{"group": "mesh.TP-0", "ranks": "0-1", "enqueued": 41, "started": None, "completed": 40}]\nfor number'
) + "\ntime.sleep(60)\n"  # fmt: skip


async def test_the_words_of_a_loop_that_stands_reach_the_collector(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        made.loop(0, steps=20, code=STANDS)
        await until(lambda: made.told("collectives"), "its words", WITHIN_S)
        found = standing.read(made.told("collectives")[0])
        assert found.members == {"mesh.TP-0": (0, 1)}
        assert (found.groups[0].enqueued, found.groups[0].completed) == (41, 40)
        assert found.stack


async def test_a_new_agent_gets_the_same_ring_and_no_step_twice(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        made.loop(0)
        await until(lambda: len(made.rows("rank_step")) > 10, "steps", WITHIN_S)
        made.agent.process.send_signal(signal.SIGTERM)
        assert await ended(made.agent.process, 10) == 0
        made.agent.start()
        before = len(made.rows("rank_step"))
        await until(
            lambda: len(made.rows("rank_step")) > before + 40, "steps through the new agent", WITHIN_S
        )
        numbers = [int(number) for number in made.rows("rank_step")]
        merged = [int(count) for count in made.rows("rank_steps_merged")]
        assert len(made.told("rank_up")) == 2
        # a slow restart leaves more steps than a tick has rows: a row then tells how many it stands for
        told = {n - back for n, count in zip(numbers, merged, strict=True) for back in range(count)}
        assert told == set(range(max(numbers) + 1)), "the ring kept what was missed"


async def test_a_second_agent_does_not_take_the_socket_of_a_living_one(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        (tmp_path / "other").mkdir()
        other = AgentProcess(tmp_path / "other", 1, f'[hook]\nsocket = "{made.path}"')
        process = other.start()
        try:
            await until(lambda: "hook_socket_absent" in other.log, "the second agent's word", WITHIN_S)
            assert "another agent listens there" in other.log
            assert process.poll() is None, "the rest of it goes on"
        finally:
            process.kill()
            process.wait(10)
        made.loop(0)
        await until(lambda: made.told("rank_up"), "the first agent has the ranks", WITHIN_S)


def register(path: Path, message: bytes, fds: list[int]) -> dict:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.settimeout(5)
        made.connect(str(path))
        made.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else [])
        return json.loads(made.recv(4096) or b"{}")


def claim(ring: Ring, **identity: object) -> bytes:
    who = {"job": "j1", "rank": 0, "world_size": 2} | identity
    return json.dumps({"protocol": 1, "generation": ring.generation, "identity": who}).encode()


async def test_liars_are_refused_with_a_sentence_and_the_honest_go_on(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        made.loop(0)
        await until(lambda: made.told("rank_up"), "the honest rank", WITHIN_S)
        ring, control = Ring(), Control()
        both = [ring.fd, control.fd]
        shrinkable = os.memfd_create("x")
        os.ftruncate(shrinkable, layout.SIZE)
        cases = {
            "bad_message": [(b"no json", both), (b'{"protocol": 1}', both), (b"[" * 5000, both)],
            "bad_protocol": [(claim(ring).replace(b'"protocol": 1', b'"protocol": 9'), both)],
            "bad_name": [(claim(ring, job="../etc"), both), (claim(ring, job="a b"), both)],
            "bad_rank": [(claim(ring, rank=7), both)],
            "bad_file": [
                (claim(ring), []), (claim(ring), [ring.fd]), (claim(ring), [control.fd, ring.fd]),
                (claim(ring), [shrinkable, control.fd]), (claim(Ring()), both),
            ],
        }  # fmt: skip
        for reason, tries in cases.items():
            for message, fds in tries:
                answer = await asyncio.to_thread(register, made.path, message, fds)
                assert answer.get("refused"), (reason, message, answer)
            await until(
                lambda r=reason: made.agent.metric(f'{REFUSED}reason="{r}"}}')
                == len(cases[r]), f"{reason} counted", 10,
            )  # fmt: skip
        before = len(made.rows("rank_step"))
        await until(lambda: len(made.rows("rank_step")) > before + 10, "the honest rank goes on", WITHIN_S)


async def test_processes_that_are_refused_leave_no_descriptor_open(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        ring, control = Ring(), Control()
        stacks = os.memfd_create("stacks", os.MFD_ALLOW_SEALING)
        os.ftruncate(stacks, layout.STACKS_SIZE)
        fcntl.fcntl(stacks, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        files, wrong = [ring.fd, control.fd, stacks], claim(Ring())
        await until(made.path.exists, "the socket", WITHIN_S)
        for _ in range(30):
            assert (await asyncio.to_thread(register, made.path, wrong, files)).get("refused")
        folder = Path(f"/proc/{made.agent.process.pid}/fd")
        await until(
            lambda: not [link for link in folder.iterdir() if "stacks" in str(link.readlink())],
            "no descriptor of theirs", 5,
        )  # fmt: skip


@pytest.mark.needs_root
async def test_another_user_cannot_take_a_ranks_name(tmp_path: Path) -> None:
    async with stack(tmp_path) as made:
        made.loop(0)
        await until(lambda: made.told("rank_up"), "the honest rank", WITHIN_S)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for folder in (tmp_path, *tmp_path.parents):
                    if folder.owner() == "root" and str(folder).startswith("/tmp/"):
                        folder.chmod(0o755)
                ring, control = Ring(), Control()
                os.setuid(65534)
                answer = register(made.path, claim(ring), [ring.fd, control.fd])
                status = 0 if "another user" in answer.get("refused", "") else 2
            finally:
                os._exit(status)
        _, ended_with = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(ended_with) == 0
        await until(lambda: made.agent.metric(f'{REFUSED}reason="rank_claim"}}') == 1, "counted", 10)
        assert len(made.told("rank_up")) == 1
