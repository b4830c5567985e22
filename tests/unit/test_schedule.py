"""The beat on fake clocks: regular ticks, skipped ones counted, clock jumps; and counters as rates."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent.identity import phase_s
from gpuvigil_agent.rates import Rates, increase
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.schedule import SECOND_NS, Beat, is_due
from gpuvigil_protos.catalog import DISK_READ_BYTES_TOTAL, GPU_ECC_CORRECTED_VOLATILE_TOTAL


class Clocks:
    def __init__(self, wall_ns: int = 1_700_000_000_123_456_789) -> None:
        self.wall, self.monotonic = wall_ns, 1000.0

    def pass_s(self, seconds: float) -> None:
        self.wall += round(seconds * SECOND_NS)
        self.monotonic += seconds

    def beat(self, phase: float = 0.25) -> Beat:
        return Beat(phase, lambda: self.wall, lambda: self.monotonic)


def test_ticks_are_a_second_apart_in_phase_however_the_loop_jitters() -> None:
    clocks = Clocks()
    beat = clocks.beat()
    ticks = []
    for jitter in (0.0, 0.03, 0.2, 0.001, 0.0):
        clocks.pass_s(beat.wait_s() + jitter)
        ticks.append(beat.next())
    assert [tick.number for tick in ticks] == [0, 1, 2, 3, 4]
    assert {tick.time_ns % SECOND_NS // 1_000_000 for tick in ticks} == {250}
    assert [b.time_ns - a.time_ns for a, b in itertools.pairwise(ticks)] == [SECOND_NS] * 4
    assert math.isclose(ticks[2].lateness_s, 0.2, abs_tol=1e-6)


@given(st.lists(st.floats(0, 30), min_size=1, max_size=30))
def test_a_late_loop_skips_whole_seconds_and_never_bursts(delays: list[float]) -> None:
    clocks = Clocks()
    beat = clocks.beat()
    done = []
    for delay in delays:
        clocks.pass_s(beat.wait_s() + delay)
        done.append(beat.next())
    assert all(tick.lateness_s < 1.001 for tick in done)
    numbers = [tick.number for tick in done]
    assert numbers == sorted(set(numbers))
    assert beat.skipped == numbers[-1] + 1 - len(numbers)
    assert beat.clock_jumps == 0


@given(st.sampled_from([-86400.0, -3600.0, -1.0, 1.0, 3600.0, 1e9, -1.7e9]))
def test_wall_clock_jumps_change_the_time_and_never_the_cadence(jump_s: float) -> None:
    clocks = Clocks()
    beat = clocks.beat()
    clocks.pass_s(beat.wait_s())
    first = beat.next()
    clocks.wall += round(jump_s * SECOND_NS)
    assert 0.99 <= beat.wait_s() <= 1.0
    clocks.pass_s(beat.wait_s())
    second = beat.next()
    assert beat.clock_jumps == 1
    assert abs(second.time_ns - first.time_ns - SECOND_NS - jump_s * SECOND_NS) < 1_000_000
    clocks.pass_s(beat.wait_s())
    assert beat.next().time_ns - second.time_ns == SECOND_NS


def test_slow_samplers_read_at_once_and_then_spread_over_their_period() -> None:
    assert is_due(7, 7, 60.0, "ecc")
    due = [number for number in range(8, 188) if is_due(number, 7, 60.0, "ecc")]
    assert len(due) == 3 and due[1] - due[0] == 60
    assert all(is_due(number, 0, 1.0, "x") for number in range(5))


def test_phase_is_fixed_for_a_name_and_away_from_the_second_s_ends() -> None:
    phases = [phase_s(f"node-{number}") for number in range(500)]
    assert phases == [phase_s(f"node-{number}") for number in range(500)]
    assert min(phases) >= 0.1 and max(phases) <= 0.9 and len(set(phases)) > 300


@given(st.floats(0, 1e15), st.floats(0, 1e15))
def test_a_counter_never_shows_a_negative_or_absurd_increase(before: float, now: float) -> None:
    grown = increase(before, now)
    assert grown is None or 0 <= grown <= max(now - before, 2**32 / 8, 2**64 / 8)


def test_wrap_is_believed_only_at_the_edge_and_a_reset_is_no_value() -> None:
    assert increase(2**32 - 10, 5) == 15
    assert increase(2**31, 5) is None
    assert increase(1000.0, 0.0) is None
    assert increase(7.0, 7.0) == 0.0


def test_rates_travel_per_second_levels_as_they_are_and_the_first_reading_as_nothing() -> None:
    rates = Rates()
    read = [
        Sample(DISK_READ_BYTES_TOTAL, "disk:a", 100.0),
        Sample(GPU_ECC_CORRECTED_VOLATILE_TOTAL, "gpu:G", 3.0),
    ]
    first = list(rates.for_wire(read, 10.0))
    assert math.isnan(first[0].value) and first[1].value == 3.0
    [second, _] = rates.for_wire([read[0]._replace(value=300.0), read[1]], 12.0)
    assert second.value == 100.0
    [third, _] = rates.for_wire([read[0]._replace(value=0.0), read[1]], 13.0)
    assert math.isnan(third.value) and rates.resets == 1
    rates.forget_before(100.0)
    [again] = rates.for_wire([read[0]], 101.0)
    assert math.isnan(again.value)
