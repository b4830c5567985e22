"""kill -9 of the agent at named points of its delivery path, judged by a relay outside both processes."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
from bench.relay_oracle import Relay
from integration.agent_process import AgentProcess, ended
from integration.failing_agent import POINTS, SCRIPT
from integration.ingest_host import Host, until

LIVE_S = 40
HITS = {"durable_rows_deleted_uncommitted": 2, "row_in_memory_only": 5, "after_stream_write": 5}


@asynccontextmanager
async def watched(tmp_path):
    """An ingest, the relay before it, and an agent that talks to the relay."""
    with Host(tmp_path / "collector") as host:
        relay = Relay(host.address)
        address = await relay.start()
        agent = AgentProcess(tmp_path, int(address.rpartition(":")[2]), '[spool]\nsync_interval = "1s"')
        try:
            yield host, relay, agent
        finally:
            if agent.process is not None and agent.process.poll() is None:
                agent.process.kill()
                agent.process.wait(10)
            await relay.stop()


async def delivered(relay: Relay, before: int) -> None:
    await until(lambda: sum(relay.durable.values()) > before + 8, "durable watermarks move on", LIVE_S)
    await until(lambda: relay.in_flight <= 2, "what waited is delivered", LIVE_S)


async def children_ended(pids: set[int]) -> None:
    """The driver process ends when its agent is gone: no orphan holds the GPUs."""
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the driver process ends", 15)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_a_named_point(tmp_path, point):
    marker = tmp_path / "killed"
    async with watched(tmp_path) as (host, relay, agent):
        hits = str(HITS.get(point, 3))
        process = agent.start((str(SCRIPT), "kill", point, hits, str(marker), "--"))
        children: set[int] = set()
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                children |= {child.pid for child in psutil.Process(process.pid).children()}
            await asyncio.sleep(0.05)
        assert process.returncode == -signal.SIGKILL
        assert marker.read_text() == point
        assert relay.sent, "it was killed before it had said anything"
        await children_ended(children)
        agent.start()
        await delivered(relay, sum(relay.durable.values()))
        agent.process.terminate()
        assert await ended(agent.process, 10) == 0
        await until(lambda: relay.in_flight <= 2, "the last flush is durable", LIVE_S)
        found = relay.judge(host.recordings)
    assert found["acknowledged"] > 5
    assert (found["lost"], found["doubled"], found["reused"]) == (0, 0, 0), found


@pytest.mark.slow
async def test_an_agent_that_uses_a_sequence_twice_turns_the_oracle_red(tmp_path):
    async with watched(tmp_path) as (host, relay, agent):
        agent.start((str(SCRIPT), "forget", "-", "4", str(tmp_path / "done"), "--"))
        await until((tmp_path / "done").exists, "the mutant's mistake", LIVE_S)
        await until(lambda: any(len(c) > 1 for s in relay.sent.values() for c in s.values()), "seen", LIVE_S)
        found = relay.judge(host.recordings)
    assert found["reused"] >= 1
