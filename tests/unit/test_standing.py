"""What ranks say while they stand still: read whatever it is, judged where it tells, grouped by stack."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.training_job import FakeJob, running_job, told  # noqa: F401 - a fixture

from gpuvigil import collectives, standstill
from gpuvigil_detectors.base import FactEvent
from gpuvigil_detectors.training import standing

WAITS = "distributed_c10d.py:90 all_reduce < train.py:33 step < train.py:80 main"


def say(job: FakeJob, rank: int, stack: str, **groups: str) -> None:
    told = (f"{name}|{text}" for name, text in groups.items())
    fields = {"stack": stack} | {f"group_{place}": text for place, text in enumerate(told)}
    job.fleet.event(f"n{rank // 2}", "collectives", f"rank:j/{rank}", origin="job", fields=fields)


@given(st.lists(st.integers(0, 3000), unique=True, max_size=200))
def test_ranks_survive_their_ranges(ranks):
    ranks = sorted(ranks)
    assert standing.ranks_of(collectives.ranges(ranks)) == tuple(ranks)


def test_ranges_are_short_where_groups_are_regular():
    assert collectives.ranges(list(range(8))) == "0-7"
    assert collectives.ranges(list(range(3, 1024, 8))) == "3-1019/8"
    assert collectives.ranges([1, 2]) == "1,2"


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=60), max_size=6))
def test_any_words_are_read(fields):
    event = FactEvent(node="n", time_ns=1, kind="collectives", origin="job", entity="rank:j/0", fields=fields)
    found = standing.read(event)
    standing.blame([(0, found, False), (1, found, True)], 2)
    standing.stacks([(0, found)])


@pytest.mark.parametrize(
    "text", ["0-9999999", "5-1", "0-8/0", "-1", "a", "0-", "1e9", "0-65535,0-65535,0-65535"]
)
def test_rank_lists_are_bounded(text):
    assert len(standing.ranks_of(text)) <= 2 * standing.RANKS_MAX


def test_the_rank_that_never_enqueued_is_named_with_where_it_is(job: FakeJob) -> None:
    job.held[1] = "all alike"
    for second in range(25):
        if second % 10 == 0:
            for rank in (0, 2, 3):
                say(job, rank, WAITS, **{"0": "41||40|0-3"})
            say(job, 1, "data.py:12 fetch < train.py:30 step", **{"0": "40||40|0-3"})
        found = told(job.second())
    [hang] = found
    assert (hang.fault_class, hang.entity, hang.severity) == ("hang", "n0/rank:j/1", "critical")
    assert dict(hang.evidence.facts)["kind"] == "host"
    assert "rank 0, 2, 3 in all_reduce, from train.py:33 step" in hang.sentence
    assert "rank 1 in data.py:12 fetch" in hang.sentence


def test_a_device_that_does_not_complete_is_told_apart(job: FakeJob) -> None:
    job.held[1] = "all alike"
    for second in range(25):
        if second % 10 == 0:
            for rank in range(4):
                done = 40 if rank == 2 else 41
                say(job, rank, WAITS, **{"0": f"41|41|{done}|0-3"})
        found = told(job.second())
    assert dict(found[0].evidence.facts)["kind"] == "device_or_transport"
    assert found[0].entity == "n1/rank:j/2"


def test_what_is_told_of_all_alike_blames_nobody(job: FakeJob) -> None:
    job.held[1] = "all alike"
    for second in range(25):
        if second % 10 == 0:
            for rank in range(4):
                say(job, rank, WAITS, **{"0": "41||40|0-3"})
        found = told(job.second())
    assert found[0].entity == "n0/job:j" and dict(found[0].evidence.facts)["kind"] == "unknown"


def test_a_loop_that_stands_says_so_in_time_and_one_that_moves_does_not(monkeypatch):
    said: list[dict] = []
    now = [100.0]
    monkeypatch.setattr(standstill.time, "monotonic_ns", lambda: int(now[0] * 1e9))
    watch = standstill.Standstill(said.append)
    watch.look(0)
    for _ in range(50):  # steps of 8 s
        now[0] += 8
        watch.look(int(now[0] * 1e9))
    assert not said
    ended = int(now[0] * 1e9)
    for _ in range(31):
        now[0] += 0.5
        watch.look(ended)
    assert not said, "twice the longest gap"
    for _ in range(60):
        now[0] += 0.5
        watch.look(ended)
    assert 3 <= len(said) <= 4 and said[0]["seconds"] >= 16
    assert said[0]["stack"] and all(" " in frame for frame in said[0]["stack"])
    assert said[0]["groups"] == [] or said[0]["groups"][0]["group"]


def test_the_innermost_frame_comes_first():
    def inner():
        import sys

        return standstill.stack(sys._getframe())

    assert inner()[0].endswith(" inner") and inner()[1].endswith("test_the_innermost_frame_comes_first")
