"""Steps of training loops on the wire: to the brain one by one, recorded as they came, never in the ring."""

from __future__ import annotations

import time

import numpy as np
import pytest
from integration.ingest_host import Host, recorded
from integration.wire_client import SECOND, Wire, batch, block, channel, dictionary

from gpuvigil_agent.batch import BatchBuilder
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import catalog
from gpuvigil_protos.v1 import stream_pb2 as pb

RANK = "rank:job-7/3"
STEPS = 3


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with Host(tmp_path_factory.mktemp("collector")) as host:
        yield host


@pytest.fixture
async def dial(host):
    opened = channel(host.address)
    yield opened
    await opened.close()


def with_steps(entities: tuple[str, ...] = (RANK, RANK, RANK)) -> pb.Dictionary:
    names = ("rank_step", "rank_step_seconds", "rank_loss")
    series = [pb.Series(metric=m, entity=e) for m, e in zip(names, entities, strict=True)]
    made = dictionary()
    made.groups.append(pb.Group(id=STEPS, period_ns=SECOND, series=series, steps=True))
    return made


async def test_steps_reach_the_brain_whole_and_are_recorded(host, dial):
    wire = Wire(dial, node="trainer")
    await wire.open(dictionary=with_steps())
    now = time.time_ns()
    ends = [now - 300_000_000, now - 200_000_000, now - 100_000_000]
    rows = [10, 0.1, 2.5, 11, 0.1, float("nan"), 12, 0.25, -1.5]
    sent = batch(1, [block(rows, STEPS, ends), block([50, 300, 0.5])])
    await wire.send(sent)
    await wire.until_durable(1)
    [steps] = host.store.snapshot(time.time_ns()).steps
    assert (steps.node, steps.entity) == ("trainer", RANK)
    assert steps.metrics == ("rank_step", "rank_step_seconds", "rank_loss")
    assert np.array_equal(steps.values, np.array(rows, np.float32).reshape(3, 3), equal_nan=True)
    assert np.abs(steps.end_ns - np.array(ends)).max() < 5 * SECOND
    assert list(np.diff(steps.end_ns)) == [100_000_000, 100_000_000]
    assert host.store.snapshot(time.time_ns()).steps == (), "each step is handed out once"
    assert "trainer/" + RANK not in host.store.snapshot(time.time_ns()).latest("rank_step").entities
    assert recorded(host.recordings)["trainer", "boot-1", "metrics", 1, sent.crc] == 1


@pytest.mark.parametrize("entities", [(RANK, RANK, "rank:job-7/4"), ("node",) * 3, ("rank:a/b/c",) * 3])
async def test_steps_that_are_not_of_one_rank_are_refused_and_the_stream_goes_on(host, dial, entities):
    wire = Wire(dial, node=f"mixed-{hash(entities) % 1000}")
    await wire.open(dictionary=with_steps(entities))
    await wire.send(batch(1, [block([1, 2, 3], STEPS)]))
    await wire.until(lambda wire: wire.refusals)
    assert wire.refusals[0].reason == "bad_text"
    assert "one rank" in wire.refusals[0].detail


def test_an_agents_batch_gives_each_rank_a_group_and_forgets_it() -> None:
    builder = BatchBuilder()
    for step in range(4):
        for rank in (0, 1):
            entity = f"rank:j/{rank}"
            builder.add_step(entity, 100 + step, float(step), [Sample(catalog.RANK_STEP, entity, step)])
    [sealed] = builder.flush()
    groups = {group.id: group for group in sealed.dictionary.groups}
    assert [groups[b.group].series[0].entity for b in sealed.batch.blocks] == ["rank:j/0", "rank:j/1"]
    assert all(groups[b.group].steps for b in sealed.batch.blocks)
    assert list(sealed.batch.blocks[0].tick_ns) == [100, 101, 102, 103]
    builder.forget(10_000.0)
    assert list(builder.dictionary().groups) == []
    assert builder.version > sealed.dictionary.version
