"""The ring: what was written is what a window shows, over turns of the ring and changes of dictionary."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integration.wire_client import dictionary

from gpuvigil_collector.ingest.dictionary import parse
from gpuvigil_collector.ingest.refusal import RefusedError
from gpuvigil_collector.ingest.ring import FAST, SHAPES, SLOW, Plane, create
from gpuvigil_collector.ingest.rows import Rows

CAPACITY = 16
NS = 1_000_000_000


def planes(capacity: int = CAPACITY) -> tuple[Plane, ...]:
    made = []
    for shape in SHAPES:
        fd = create("test", shape, capacity)
        made.append(Plane(fd, shape, capacity))
        os.close(fd)
    return tuple(made)


def window(plane: Plane, first: int, seconds: int, rows: list[int]) -> np.ndarray:
    out = np.full((len(rows), seconds), np.nan, np.float32)
    plane.read(first, seconds, np.array(rows, np.int32), out)
    return out


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.floats(0, 9, width=32)), min_size=1, max_size=60))
def test_a_window_shows_the_newest_write_of_each_second_in_reach(writes):
    plane = planes()[FAST]
    plane.clear(np.array([3], np.int32))
    model: dict[int, float] = {}
    newest = 0
    for second, value in sorted(writes, key=lambda write: write[0]):
        plane.write(1000 + second, (1000 + second) * NS, slice(3, 4), np.array([value], np.float32))
        model[1000 + second] = value
        newest = 1000 + second
    seen = window(plane, newest - 299, 300, [3])[0]
    for at, value in enumerate(seen):
        expected = model.get(newest - 299 + at)
        assert (np.isnan(value) and expected is None) or value == np.float32(expected)


def test_absent_samples_are_nan_in_the_window_and_leave_the_latest_its_age():
    plane = planes()[FAST]
    plane.clear(np.array([0, 1], np.int32))
    plane.write(50, 50 * NS, slice(0, 2), np.array([1, 2], np.float32))
    plane.write(51, 51 * NS, slice(0, 2), np.array([3, np.nan], np.float32))
    np.testing.assert_array_equal(window(plane, 50, 2, [0, 1]), np.array([[1, 3], [2, np.nan]], np.float32))
    assert plane.latest[:2].tolist() == [3, 2]
    assert plane.latest_ns[:2].tolist() == [51 * NS, 50 * NS]


def test_a_column_that_was_overwritten_is_never_taken_for_an_older_second():
    plane = planes()[FAST]
    plane.clear(np.array([0], np.int32))
    plane.write(10, 10 * NS, slice(0, 1), np.array([1], np.float32))
    plane.write(10 + 320, 330 * NS, slice(0, 1), np.array([2], np.float32))
    assert np.isnan(window(plane, 10, 1, [0])).all()
    plane.write(10, 10 * NS, slice(0, 1), np.array([9], np.float32))
    assert window(plane, 330, 1, [0]) == 2


def test_slow_series_stand_at_the_start_of_their_ten_seconds():
    plane = planes()[SLOW]
    plane.clear(np.array([0], np.int32))
    plane.write(107, 107 * NS, slice(0, 1), np.array([4], np.float32))
    plane.write(117, 117 * NS, slice(0, 1), np.array([5], np.float32))
    seen = window(plane, 99, 22, [0])[0]
    assert np.flatnonzero(~np.isnan(seen)).tolist() == [1, 11]
    assert seen[[1, 11]].tolist() == [4, 5]


def test_a_series_keeps_its_row_and_history_over_a_new_dictionary():
    ring = planes()
    rows = Rows(ring)
    first = parse(dictionary(1), 100)
    rows.assign("n1", first, 0)
    ring[FAST].write(50, 50 * NS, first.groups[1].rows, np.array([1, 2, 3], np.float32))
    fewer = (("node_cpu_utilization_ratio", "node"), ("gpu_power_watts", "gpu:GPU-0"), ("node_load1", "node"))
    second = parse(dictionary(2, fast=fewer), 100)
    rows.assign("n1", second, 0)
    seen = window(ring[FAST], 50, 1, second.groups[1].rows.tolist())
    np.testing.assert_array_equal(seen[:, 0], np.array([3, 2, np.nan], np.float32))


def test_a_free_row_rests_before_a_stranger_gets_it_and_comes_empty():
    ring = planes(4)
    rows = Rows(ring)
    first = parse(dictionary(1), 100)
    rows.assign("n1", first, 0)
    ring[FAST].write(50, 50 * NS, first.groups[1].rows, np.array([1, 2, 3], np.float32))
    rows.release("n1", 1 * NS)
    stranger = parse(dictionary(1), 100)
    with pytest.raises(RefusedError) as refused:
        rows.assign("n2", stranger, 2 * NS)
    assert refused.value.reason == "too_many_series"
    rows.assign("n2", stranger, 120 * NS)
    assert np.isnan(window(ring[FAST], 50, 1, [0, 1, 2])).all()
    assert np.isnan(ring[FAST].latest[:3]).all()
    assert (ring[FAST].latest_ns[:3] == 0).all()


def test_a_full_ring_refuses_the_newcomer_and_leaves_the_others_alone():
    ring = planes(4)
    rows = Rows(ring)
    held = parse(dictionary(1), 100)
    rows.assign("n1", held, 0)
    with pytest.raises(RefusedError):
        rows.assign("n2", parse(dictionary(1), 100), 0)
    ring[FAST].write(50, 50 * NS, held.groups[1].rows, np.array([1, 2, 3], np.float32))
    assert window(ring[FAST], 50, 1, [0, 1, 2])[:, 0].tolist() == [1, 2, 3]
