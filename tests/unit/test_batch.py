"""Samples to batches and back: what was read at a tick is in its row, what was not is NaN."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent.batch import FORGET_S, BatchBuilder, Sealed
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos.catalog import CATALOG, GPU_TEMPERATURE_CELSIUS
from gpuvigil_protos.codec import GROUPS_PER_NODE_MAX, SERIES_PER_NODE_MAX, blocks_crc, unpack_float32

METRICS = list(CATALOG.values())[:4]
Read = dict[tuple[str, str], float]
reads = st.dictionaries(
    st.tuples(st.sampled_from([m.name for m in METRICS]), st.sampled_from(["gpu:A", "gpu:B", "node"])),
    st.floats(0, 1e6, width=32), max_size=8,
)  # fmt: skip


def samples(read: Read) -> list[Sample]:
    return [Sample(CATALOG[metric], entity, value) for (metric, entity), value in read.items()]


def decoded(sealed: list[Sealed]) -> dict[tuple[int, float], Read]:
    """Undo batches as a collector does: (tick, period) -> present values."""
    found: dict[tuple[int, float], Read] = {}
    for one in sealed:
        assert one.batch.crc == blocks_crc(one.batch.blocks)
        assert one.batch.dictionary_version == one.dictionary.version
        groups = {group.id: group for group in one.dictionary.groups}
        for block in one.batch.blocks:
            group, values = groups[block.group], unpack_float32(block.values)
            width = len(group.series)
            assert len(values) == width * len(block.tick_ns)
            for at, tick in enumerate(block.tick_ns):
                row = values[at * width : (at + 1) * width]
                found[tick, group.period_ns / 1e9] = {
                    (series.metric, series.entity): value
                    for series, value in zip(group.series, row, strict=True) if not math.isnan(value)
                }  # fmt: skip
    return found


@given(st.lists(st.tuples(st.sampled_from([1.0, 10.0]), reads, st.booleans()), max_size=20))
def test_whatever_is_read_comes_back_exactly_over_hot_plug_and_flushes(
    steps: list[tuple[float, Read, bool]],
) -> None:
    builder, sealed, expected = BatchBuilder(), [], {}
    for tick, (period, read, flush) in enumerate(steps, 1):
        builder.add(tick, float(tick), period, samples(read))
        expected[tick, period] = read
        if flush:
            sealed += builder.flush()
    sealed += builder.flush()
    got = decoded(sealed)
    assert {key: read for key, read in expected.items() if read} == {
        key: read for key, read in got.items() if read
    }
    assert sum(one.samples for one in sealed) == sum(len(read) for read in expected.values())
    versions = [one.dictionary.version for one in sealed]
    assert versions == sorted(versions)
    by_version = {one.dictionary.version: one.dictionary for one in sealed}
    assert all(one.dictionary == by_version[one.dictionary.version] for one in sealed), (
        "a version never changes"
    )


def test_absent_is_nan_and_never_the_old_value() -> None:
    builder = BatchBuilder()
    hot = Sample(GPU_TEMPERATURE_CELSIUS, "gpu:A", 60.0)
    builder.add(1, 1.0, 1.0, [hot])
    builder.add(2, 2.0, 1.0, [])
    builder.add(3, 3.0, 1.0, [hot._replace(value=float("inf"))])
    [one] = builder.flush()
    values = list(unpack_float32(one.batch.blocks[0].values))
    assert values[0] == 60.0 and math.isnan(values[1]) and math.isnan(values[2])
    assert one.samples == 1 or one.samples == 2


def test_steady_series_keep_one_version_and_gone_ones_leave() -> None:
    builder = BatchBuilder()
    a, b = (Sample(GPU_TEMPERATURE_CELSIUS, f"gpu:{name}", 50.0) for name in "AB")
    for tick in range(10):
        builder.add(tick, float(tick), 1.0, [a, b])
        builder.flush()
    assert builder.version == 1 and builder.series == 2
    builder.add(20, 20.0 + FORGET_S, 1.0, [a])
    builder.forget(20.0 + FORGET_S)
    assert builder.series == 1
    builder.add(21, 21.0 + FORGET_S, 1.0, [a])
    sealed = builder.flush()
    assert [one.dictionary.version for one in sealed] == [1, 2]
    assert len(decoded(sealed)[21, 1.0]) == 1


def test_a_dictionary_once_told_never_changes_under_its_version() -> None:
    builder = BatchBuilder()
    told = builder.dictionary()  # an empty one, told in a Hello before the first tick
    builder.add(1, 1.0, 1.0, [Sample(GPU_TEMPERATURE_CELSIUS, "gpu:A", 50.0)])
    [one] = builder.flush()
    assert (told.version, len(told.groups)) == (1, 0)
    assert one.dictionary.version == 2


def test_a_series_explosion_is_cut_off_and_counted() -> None:
    builder = BatchBuilder()
    many = [
        Sample(GPU_TEMPERATURE_CELSIUS, f"gpu:{number}", 1.0) for number in range(SERIES_PER_NODE_MAX + 7)
    ]
    builder.add(1, 1.0, 1.0, many)
    assert builder.series == SERIES_PER_NODE_MAX and builder.overflow == 7
    [one] = builder.flush()
    assert one.samples == SERIES_PER_NODE_MAX


def step(builder: BatchBuilder, job: int, at_s: float) -> None:
    builder.add_step(f"rank:j{job}/0", job + 1, at_s, samples({("rank_step", f"rank:j{job}/0"): float(job)}))


def steps_of(sealed: list[Sealed]) -> list[int]:
    return sorted(tick for one in sealed for block in one.batch.blocks for tick in block.tick_ns)


def test_many_short_jobs_never_have_more_groups_than_the_wire_allows() -> None:
    builder = BatchBuilder()
    builder.add(1, 0.0, 1.0, samples({(METRICS[0].name, "node"): 1.0}))
    sealed: list[Sealed] = []
    for job in range(3 * GROUPS_PER_NODE_MAX):
        step(builder, job, float(job))
        assert len(builder.dictionary().groups) <= GROUPS_PER_NODE_MAX
        if job % 7 == 0:
            sealed += builder.flush()
    sealed += builder.flush()
    assert set(steps_of(sealed)) >= set(range(1, 3 * GROUPS_PER_NODE_MAX + 1))
    assert all(len(one.dictionary.groups) <= GROUPS_PER_NODE_MAX for one in sealed)


def test_a_rank_that_has_ended_leaves_with_its_last_steps_kept() -> None:
    builder = BatchBuilder()
    for job in range(5):
        step(builder, job, 0.0)
    builder.keep_ranks({"rank:j3/0"})
    assert [group.series[0].entity for group in builder.dictionary().groups] == ["rank:j3/0"]
    assert steps_of(builder.flush()) == [1, 2, 3, 4, 5]
