"""kill -9 of the agent: an oracle outside it compares what the collector got with what was reported lost."""

from __future__ import annotations

import asyncio
import random
import signal

import pytest
from integration.agent_collector import TestCollector, serving, until
from integration.agent_process import ended, make_agent  # noqa: F401 - a fixture

from gpuvigil_protos.v1 import stream_pb2 as pb

LIVE_S = 40


@pytest.mark.slow
async def test_kill_9_leaves_no_hole_that_is_not_reported(make) -> None:
    chance = random.Random(5)
    collector = TestCollector()
    async with serving(collector) as port:
        agent = make(port, '[spool]\nsync_interval = "3s"')  # slow on purpose: each kill loses something
        for round_ in range(5):
            collector.stall = round_ % 2 == 1  # nothing is taken: whatever is in flight dies with the process
            before = collector.rows()
            process = agent.start()
            produced = 'gpuvigil_agent_ledger_produced_sequences_total{class="metrics"'
            await until(lambda: agent.metric(produced) >= 6, LIVE_S, "batches made")  # noqa: B023
            await asyncio.sleep(chance.random())
            process.kill()
            await ended(process, 10)
            collector.stall = False
            assert round_ % 2 or collector.rows() > before
        process = agent.start()
        await until(
            lambda: len(collector.of()) >= 6 and agent.metric("gpuvigil_agent_stream_up{") == 1,
            LIVE_S,
            "last run",
        )
        boots_waiting = 'gpuvigil_agent_ledger_spooled_sequences{class="metrics"'
        await until(
            lambda: 0 <= agent.metric(boots_waiting) <= 3 and not collector.holes(),
            LIVE_S,
            "old boots drained",
        )
        assert agent.balanced()
        process.send_signal(signal.SIGTERM)
        assert await ended(process, 10) == 0
    assert collector.holes() == []
    assert all(taken.changed == [] for taken in collector.taken.values()), "a sequence was used twice"
    lost = sum(len(taken.given_up) for taken in collector.taken.values())
    got = collector.rows()
    assert lost <= 5 * 4, f"lost {lost} of {got}: at most the sync interval of each kill"
    assert any(gap.reason == "crash" for taken in collector.of() for gap in taken.gaps), (
        "no kill lost anything"
    )
    print(f"oracle: {got} batches received, {lost} sequences reported lost over 5 kills")


async def test_clean_restart_goes_on_with_the_same_boot_id_and_sequence(make) -> None:
    collector = TestCollector()
    async with serving(collector) as port:
        agent = make(port)
        for _ in range(2):
            before = collector.rows()
            process = agent.start()
            await until(lambda: collector.rows() >= before + 3, LIVE_S, "batches")  # noqa: B023
            process.send_signal(signal.SIGTERM)
            assert await ended(process, 10) == 0
    assert len({hello.boot_id for hello in collector.hellos}) == 1
    [taken] = collector.of(pb.CLASS_METRICS)
    assert collector.holes() == []
    assert taken.changed == [] and taken.order == sorted(taken.order)
