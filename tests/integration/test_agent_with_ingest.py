"""The agent's process against the collector's real ingest worker: what is durable leaves the spool."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from integration.agent_collector import until
from integration.agent_process import AgentProcess, ended, make_agent  # noqa: F401 - a fixture
from integration.ingest_host import Host

LIVE_S = 40


@pytest.mark.slow
async def test_agent_and_ingest_agree_over_a_collector_restart_and_a_killed_agent(make, tmp_path) -> None:
    host = Host(tmp_path / "collector").start()
    try:
        agent: AgentProcess = make(int(host.ingest.address.rpartition(":")[2]))
        process = agent.start()
        durable = 'gpuvigil_agent_ledger_durable_sequences_total{class="metrics"'
        await until(lambda: agent.metric(durable) >= 5, LIVE_S, "durable batches")
        host.stop()
        await until(lambda: agent.metric("gpuvigil_agent_stream_up{") == 0, LIVE_S, "the loss is seen")
        await until(lambda: agent.metric("gpuvigil_agent_ledger_spooled_sequences{") >= 3, LIVE_S, "spooled")
        host.start()
        before = agent.metric(durable)
        await until(lambda: agent.metric(durable) >= before + 5, LIVE_S, "durable after the restart")
        process.kill()
        process.wait(10)
        agent.start()
        await until(lambda: agent.metric(durable) >= 5, LIVE_S, "durable after kill -9")
        assert agent.balanced()
        rows = [row for row in host.store.ledger() if row["class"] == "metrics"]
        assert len({row["boot_id"] for row in rows}) == 2, "a crash begins a new generation"
        assert [row["refused"] for row in rows] == [{}, {}]
    finally:
        host.stop()


@pytest.mark.slow
async def test_a_collector_that_has_lost_its_state_takes_up_the_agents_where_they_are(make, tmp_path) -> None:
    host = Host(tmp_path / "collector").start()
    try:
        agent: AgentProcess = make(int(host.ingest.address.rpartition(":")[2]))
        process = agent.start()
        durable = 'gpuvigil_agent_ledger_durable_sequences_total{class="metrics"'
        for how in ("the agent goes on", "the agent is restarted"):
            await until(lambda: agent.metric(durable) >= 5, LIVE_S, "durable batches")
            host.stop()
            if how == "the agent is restarted":
                os.kill(process.pid, signal.SIGTERM)
                assert await ended(process, 20) == 0
            shutil.rmtree(host.folder)
            host.start()
            if how == "the agent is restarted":
                agent.start()
            await host.counter("gap_sequences_total:already_durable", 4)
            await until(lambda: host.ledger("n1").get("durable", 0) >= 10, LIVE_S, "a watermark that moves")
            await until(lambda: agent.metric("gpuvigil_agent_ledger_spooled_sequences{") <= 3, LIVE_S, how)
            row = host.ledger("n1")
            assert (row["gap_sequences"], row["refused"]) == (0, {}), "nothing is lost"
            assert agent.balanced()
        assert len({row["boot_id"] for row in host.store.ledger()}) == 1
    finally:
        host.stop()
