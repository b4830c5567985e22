"""R2, R5: of the collectors that share a lease one may act, by both clocks; a lost file gives no second."""

from __future__ import annotations

import os
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuvigil_collector.lease import Clock
from gpuvigil_collector.lease_file import SqliteLease

SECOND = 1_000_000_000


class Clocks:
    """One host's clocks: a steady one, and a wall clock that jumps apart from it."""

    def __init__(self, steady=1000.0, wall=1_800_000_000.0):
        self.steady, self.wall = steady, wall

    def run(self, seconds):
        self.steady, self.wall = self.steady + seconds, self.wall + seconds

    @property
    def clock(self):
        return Clock(wall=lambda: int(self.wall * SECOND), steady=lambda: int(self.steady * SECOND))


@pytest.fixture
def host():
    return Clocks()


@pytest.fixture
def new(tmp_path, host):
    def make(name, *, settle=True, **more):
        made = SqliteLease(tmp_path / "lease.sqlite", holder=name, clock=host.clock, boot="b1", **more)
        if settle and not (tmp_path / "lease.sqlite").exists():
            made.renew()
            host.run(30)
        return made

    return make


def test_a_new_file_is_nobodys_for_one_lease_and_then_the_first_that_asks(new, host):
    first = new("a", settle=False)
    first.renew()
    assert first.fence() is None and first.fault == ""
    host.run(29.9)
    first.renew()
    assert first.fence() is None
    host.run(0.1)
    first.renew()
    fence = first.fence()
    assert fence.generation == 1_800_000_000 + 1 and fence.holder.startswith("a:")
    assert fence.until_ns == int((host.wall + 30) * SECOND) and fence.lease_s == 30
    assert first.state() == f"ours, generation {fence.generation}"


def test_r2_the_second_waits_and_takes_over_with_a_higher_generation(new, host):
    first, second = new("a"), new("b")
    first.renew()
    second.renew()
    assert second.fence() is None and second.state() == f"held by {first.holder}"
    for _ in range(10):
        host.run(10)
        first.renew()
        second.renew()
        assert first.fence() is not None and second.fence() is None
    generation = first.fence().generation
    host.run(30)  # the first was stopped
    second.renew()
    assert second.fence().generation == generation + 1
    assert first.fence() is None, "before it has read the file again"
    first.renew()
    assert first.fence() is None and first.state() == f"held by {second.holder}"


def test_nothing_is_begun_in_the_last_half(new, host):
    first = new("a")
    first.renew()
    host.run(14.9)
    assert first.fence() is not None
    host.run(0.2)
    assert first.fence() is None
    generation = new("b")
    generation.renew()
    assert generation.fence() is None, "it is the first's still"


def test_who_lost_it_and_takes_it_again_has_a_new_generation(new, host):
    first = new("a")
    first.renew()
    before = first.fence().generation
    host.run(31)
    first.renew()
    assert first.fence().generation == before + 1


def test_given_back_it_is_taken_at_once(new, host):
    first, second = new("a"), new("b")
    first.renew()
    first.stop()
    second.renew()
    assert first.fence() is None and second.fence() is not None


@pytest.mark.parametrize("jump", [600, -600])
def test_r2_a_jump_of_the_wall_clock_lengthens_nothing(new, host, jump):
    first, second = new("a"), new("b")
    first.renew()
    host.wall += jump
    second.renew()
    assert second.fence() is None, "the first's time is not over"
    fence = first.fence()
    assert fence is None or fence.until_ns <= int((host.wall + 30) * SECOND)
    host.run(16)
    assert first.fence() is None, "by the clock that does not jump"
    host.run(14)
    second.renew()
    assert second.fence() is not None and first.fence() is None


def test_another_boots_record_is_free_once_it_has_stood_still_for_a_lease(new, host, tmp_path):
    first = new("a")
    first.renew()
    host.steady = 5.0  # the host has restarted
    second = SqliteLease(tmp_path / "lease.sqlite", holder="b", clock=host.clock, boot="b2")
    second.renew()
    host.run(29)
    second.renew()
    assert second.fence() is None
    host.run(1)
    second.renew()
    assert second.fence() is not None


@pytest.mark.parametrize(
    "damage", ["garbage", "empty", "schema", "no_record", "two_records", "nonsense", "far", "locked"]
)
def test_r5_a_lease_that_cannot_be_read_is_nobodys(new, host, tmp_path, damage):
    first = new("a")
    first.renew()
    path = tmp_path / "lease.sqlite"
    database = sqlite3.connect(path)
    if damage in ("garbage", "empty"):
        path.write_bytes(b"<html>" * 1000 if damage == "garbage" else b"")
    else:
        database.executescript(
            {
                "schema": "PRAGMA user_version = 9",
                "no_record": "DELETE FROM lease",
                "two_records": "ALTER TABLE lease RENAME TO o; CREATE TABLE lease AS SELECT * FROM o;"
                "INSERT INTO lease SELECT * FROM o",
                "nonsense": "UPDATE lease SET generation = -1",
                "far": "UPDATE lease SET until_steady_ns = until_steady_ns + 9000000000000",
                "locked": "BEGIN EXCLUSIVE",
            }[damage]
        )
    host.run(16)
    second = SqliteLease(path, holder="b", clock=host.clock, boot="b1")
    asking = (second,) if damage == "far" else (first, second)  # its holder would put it right
    for lease in asking:
        lease.renew()
        assert "cannot be used" in lease.fault and "only observes" in lease.fault
    host.run(31)
    for lease in asking:
        lease.renew()
        assert lease.fence() is None and lease.fault
    database.close()


def test_r5_a_file_that_is_gone_gives_nobody_two_leases(new, host, tmp_path):
    first, second = new("a"), new("b")
    first.renew()
    generation = first.fence().generation
    (tmp_path / "lease.sqlite").unlink()
    host.run(1)
    second.renew()
    assert second.fence() is None, "the first does not know yet"
    assert first.fence() is not None
    first.renew()
    assert first.fence() is None, "and now it does"
    host.run(30)
    second.renew()
    assert second.fence().generation > generation


def test_a_folder_that_cannot_be_made_is_told(host, tmp_path):
    (tmp_path / "file").write_text("")
    lease = SqliteLease(tmp_path / "file" / "lease.sqlite", clock=host.clock)
    lease.renew()
    assert lease.fence() is None and "only observes" in lease.fault


def test_the_thread_renews_and_gives_back(tmp_path):
    lease = SqliteLease(tmp_path / "lease.sqlite", lease_s=0.6)
    lease.start()
    end = os.times().elapsed + 20
    while lease.fence() is None and os.times().elapsed < end:
        pass
    assert lease.fence() is not None
    lease.stop()
    assert lease.fence() is None


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("renew"), st.integers(0, 2)),
        st.tuples(st.just("run"), st.floats(0.0, 40.0)),
        st.tuples(st.just("jump"), st.floats(-700.0, 700.0)),
        st.tuples(st.just("lose"), st.just(0)),
        st.tuples(st.just("give"), st.integers(0, 2)),
    ),
    max_size=25,
)


@settings(max_examples=int(os.environ.get("GPUVIGIL_EXAMPLES", "60")), deadline=None)
@given(moves=MOVES)
def test_r2_never_two_at_once_whatever_the_clocks_and_the_file_do(tmp_path_factory, moves):
    """Three collectors, stopped at will, jumps of the wall clock, a file that is lost, leases given back."""
    path = tmp_path_factory.mktemp("lease") / "lease.sqlite"
    host, generations = Clocks(), {}
    leases = [SqliteLease(path, holder=str(n), clock=host.clock, boot="b1") for n in range(3)]
    for move, value in [*moves, ("run", 31), ("renew", 0), ("run", 31), ("renew", 1)]:
        if move == "renew":
            leases[value].renew()
        elif move == "run":
            host.run(value)
        elif move == "jump":
            host.wall += value
        elif move == "give":
            leases[value].stop()
        else:
            path.unlink(missing_ok=True)
        fences = [fence for lease in leases if (fence := lease.fence()) is not None]
        assert len(fences) <= 1
        for fence in fences:
            assert generations.setdefault(fence.generation, fence.holder) == fence.holder
    assert leases[1].fence() is not None or leases[0].fence() is not None, "and somebody may act in the end"
