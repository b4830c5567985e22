"""What the collector has received and not yet on its disk stays in the agent's spool, and is sent again."""

from __future__ import annotations

import asyncio

from integration.agent_collector import TestCollector, serving, until
from integration.agent_process import make_agent  # noqa: F401 - a fixture
from integration.stack import free_port

LIVE_S = 40
LAG = 3
DURABLE = 'gpuvigil_agent_ledger_durable_sequences_total{class="metrics"'


async def test_rows_that_were_received_and_lost_before_they_were_durable_come_again(make) -> None:
    collector, port = TestCollector(), free_port()
    collector.durable_lag = LAG
    agent = make(port)
    async with serving(collector, port):
        agent.start()
        await until(lambda: collector.rows() >= 8, LIVE_S, "batches")
        await until(lambda: agent.metric(DURABLE) >= 1, LIVE_S, "some are durable")
        for _ in range(5):
            durable, received = agent.metric(DURABLE), collector.rows()
            assert durable <= received - LAG, "the spool let go of what is only received"
            await asyncio.sleep(0.2)
    [taken] = collector.of()
    kept = max(taken.rows) - LAG
    for sequence in range(kept + 1, max(taken.rows) + 1):  # the collector's disk never had them
        del taken.rows[sequence]
    collector.durable_lag = 0
    async with serving(collector, port):
        await until(lambda: len(taken.rows) >= kept + LAG + 2, LIVE_S, "what was lost, and more")
        await until(lambda: not collector.holes(), LIVE_S, "no hole")
        assert taken.given_up == set(), "rows that were never durable were given up"
        assert agent.balanced()
