"""The ledger's intervals against the obvious set, and the agent's clock against clocks that lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_collector.ingest.clock import SECOND_NS, AgentClock
from gpuvigil_collector.ingest.intervals import IntervalSet

RANGES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 12)), max_size=40)


@given(RANGES)
def test_intervals_are_the_set_of_their_numbers(ranges):
    intervals, numbers = IntervalSet(), set()
    for first, length in ranges:
        new = intervals.add(first, first + length)
        added = set(range(first, first + length + 1))
        assert new == len(added - numbers)
        numbers |= added
    assert {n for first, last in intervals for n in range(first, last + 1)} == numbers
    assert all((n in intervals) == (n in numbers) for n in range(1, 80))
    firsts_and_lasts = [edge for pair in intervals for edge in pair]
    assert firsts_and_lasts == sorted(firsts_and_lasts)
    assert all(b - a > 1 for (_, a), (b, _) in zip(list(intervals), list(intervals)[1:], strict=False))
    assert list(IntervalSet.from_text(intervals.to_text())) == list(intervals)
    missing = next(n for n in range(1, 100) if n not in numbers)
    assert intervals.watermark == missing - 1


@given(RANGES, RANGES)
def test_update_is_union_and_copies_are_independent(left, right):
    one = IntervalSet((first, first + length) for first, length in left)
    before = list(one)
    other = one.copy()
    other.update(IntervalSet((first, first + length) for first, length in right))
    assert list(one) == before
    both = IntervalSet((first, first + length) for first, length in left + right)
    assert list(other) == list(both)


def test_a_healthy_sender_stays_one_interval():
    intervals = IntervalSet()
    for sequence in range(1, 100_001):
        intervals.add(sequence, sequence)
    assert (len(intervals), intervals.watermark) == (1, 100_000)


@pytest.mark.parametrize("text", ["1", "a-b", "1-2-3", "1-"])
def test_a_damaged_ledger_is_an_error(text):
    with pytest.raises(ValueError):
        IntervalSet.from_text(text)


def _heard(clock: AgentClock, shift_ns: int, seconds: range, delay_ns: int = 2_000_000) -> list[bool]:
    """The collector's clock is right; the agent's is `shift_ns` ahead; each message takes `delay_ns`."""
    return [clock.observe(second * SECOND_NS + delay_ns, second * SECOND_NS + shift_ns) for second in seconds]


@pytest.mark.parametrize("shift_s", [0, 1, -1, 3600, -86400, 100 * 365 * 86400])
def test_the_offset_takes_off_whatever_the_agents_clock_is_wrong_by(shift_s):
    clock = AgentClock()
    assert not any(_heard(clock, shift_s * SECOND_NS, range(100, 110)))
    assert clock.offset_ns == pytest.approx(-shift_s * SECOND_NS, abs=3_000_000)
    assert clock.second_of(120 * SECOND_NS + shift_s * SECOND_NS) == 120


def test_a_slow_message_moves_nothing():
    clock = AgentClock()
    _heard(clock, 0, range(100, 110))
    assert not clock.observe(113 * SECOND_NS, 110 * SECOND_NS)
    assert clock.offset_ns == 2_000_000


@pytest.mark.parametrize("jump_s", [1, -1, 3600, -3600, 86400, -1_800_000_000, 2_000_000_000])
def test_a_jump_is_counted_once_and_followed(jump_s):
    clock = AgentClock()
    _heard(clock, 0, range(100, 120))
    _heard(clock, jump_s * SECOND_NS, range(120, 140))
    assert clock.jumps == 1
    assert clock.second_of(140 * SECOND_NS + jump_s * SECOND_NS) == 140


@given(
    st.integers(0, SECOND_NS - 1), st.lists(st.integers(-200_000_000, 200_000_000), min_size=2, max_size=50)
)
def test_jittered_ticks_have_a_second_each(phase_ns, jitter):
    clock = AgentClock()
    clock.observe(100 * SECOND_NS, 100 * SECOND_NS)
    ticks = [(100 + n) * SECOND_NS + phase_ns + late for n, late in enumerate(jitter)]
    seconds = [clock.second_of(tick) for tick in ticks]
    assert seconds == list(range(seconds[0], seconds[0] + len(seconds)))
