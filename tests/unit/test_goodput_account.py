"""A job's time in buckets: every second once, what failures cost, what a restart of the collector keeps."""

from __future__ import annotations

import pytest
from unit.fake_snapshot import SECOND, START_NS
from unit.training_world import World

from gpuvigil_collector.goodput.account import BUCKETS, Account, Loss
from gpuvigil_collector.goodput.books import Books
from gpuvigil_collector.goodput.report import cause_of
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_detectors.training.jobs import Jobs


class Play:
    """A job of two ranks on a fake clock, accounted once a second."""

    def __init__(self, tmp_path):
        self.world, self.jobs, self.books = World(), Jobs(), Books(tmp_path / "goodput.json")

    def tick(self, slowdown=0.0):
        self.jobs.take(self.world.snapshot())
        self.books.tick(self.jobs.by_name.values(), lambda _: slowdown)

    def steps(self, count, first, seconds=1.0, slowdown=0.0, **more):
        for number in range(first, first + count):
            self.world.step(number, seconds, **more)
            self.tick(slowdown)

    @property
    def account(self) -> Account:
        return self.books.accounts["j1"]


@pytest.fixture
def play(tmp_path):
    return Play(tmp_path)


def whole(account, now_ns):
    """Every second from the beginning to the cursor is in exactly one bucket."""
    assert set(account.seconds) == set(BUCKETS)
    assert account.wall == pytest.approx((account.cursor_ns - account.began_ns) / SECOND, abs=1e-6)
    assert all(seconds >= 0 for seconds in account.seconds.values())


def test_init_steps_phases_and_saves(play):
    play.world.up(0), play.world.up(1)
    play.tick()
    play.world.wait(30)
    play.steps(20, 0)
    play.steps(10, 20, data=0.25)
    play.steps(1, 30, seconds=6.0, checkpoint=5.0)
    account = play.account
    whole(account, play.world.now_ns)
    assert account.seconds["init"] == pytest.approx(30, abs=0.01)
    assert account.seconds["data"] == pytest.approx(2.5, rel=1e-3)
    assert account.seconds["checkpoint"] == pytest.approx(5.0, rel=1e-3)
    assert account.seconds["useful"] == pytest.approx(20 + 7.5 + 1, rel=1e-3)
    assert (account.saves, account.save_seconds) == (1, pytest.approx(5.0))
    assert account.goodput == pytest.approx(28.5 / 66, rel=1e-2)


def test_a_failure_costs_detection_queue_restart_and_recompute(play):
    play.world.up(0), play.world.up(1)
    play.tick()
    play.steps(50, 0)
    play.world.wait(12)
    play.world.down(1, "died"), play.world.down(0, "died")
    play.tick()
    play.world.wait(40)
    play.world.up(0, restart=1), play.world.up(1, restart=1)
    play.tick()
    play.world.wait(8)
    play.steps(30, 40)
    account = play.account
    whole(account, play.world.now_ns)
    assert account.seconds["detect"] == pytest.approx(12, abs=0.01)
    assert account.seconds["queue"] == pytest.approx(40, abs=0.01)
    assert account.seconds["restart"] == pytest.approx(8, abs=0.01)
    assert account.seconds["recompute"] == pytest.approx(10, rel=1e-3)
    assert account.seconds["useful"] == pytest.approx(50 + 20, rel=1e-2)
    [loss] = account.losses
    assert (loss.step, loss.ranks) == (49, 2)
    assert loss.seconds == pytest.approx(70, rel=1e-3)
    assert account.attempts == 2 and account.highest == 69


def test_what_slows_a_job_is_lost_as_slow(play):
    play.world.up(0), play.world.up(1)
    play.tick()
    play.steps(30, 0)
    play.steps(20, 30, seconds=1.25, slowdown=0.25)
    play.steps(1, 50, seconds=21.0)  # something held one step
    account = play.account
    whole(account, play.world.now_ns)
    assert account.seconds["slow"] == pytest.approx(20 * 0.25 + 20, rel=0.02)


def test_a_job_that_ends_by_itself_loses_nothing_afterwards(play):
    play.world.up(0), play.world.up(1)
    play.tick()
    play.steps(10, 0)
    play.world.down(0, "exit"), play.world.down(1, "exit")
    play.tick()
    play.world.wait(600)
    play.tick()
    account = play.account
    assert account.state == "ended" and account.wall == pytest.approx(10, abs=0.1) and not account.losses


def test_accounts_survive_a_restart_and_a_spoilt_file_is_no_end(play, tmp_path):
    play.world.up(0), play.world.up(1)
    play.tick()
    play.steps(25, 0)
    play.books.save()
    after = Books(tmp_path / "goodput.json")
    after.load()
    assert after.accounts["j1"] == play.account
    jobs = Jobs()
    play.world.up(0), play.world.up(1)  # the new brain is told again
    jobs.take(play.world.snapshot())
    after.tick(jobs.by_name.values(), lambda _: 0.0)
    for text in (b"", b"{}", b'{"version": 1, "accounts": [{"job": 3}]}', b"\xff" * 40):
        (tmp_path / "goodput.json").write_bytes(text)
        fresh = Books(tmp_path / "goodput.json")
        fresh.load()
        assert fresh.accounts == {}


def test_the_sliding_hour_forgets(play):
    play.world.up(0), play.world.up(1)
    play.tick()
    play.world.wait(3000)
    play.steps(100, 0, seconds=60.0)
    account = play.account
    assert account.goodput_lately(play.world.now_ns) == pytest.approx(1.0, abs=0.02)
    assert account.goodput < 0.8
    assert len(account.minutes) <= 61
    assert account.cursor_ns > START_NS


def test_a_loss_names_the_fault_that_ended_the_attempt_not_the_slowness_before_it():
    def incident(name, severity, opened_s, **more):
        return Incident(
            id=name, fingerprint=name, fault_class=name, scope="job", severity=severity, state="resolved",
            node="n1", target="n1/rank:j1/1", cause="", lead_start_ns=0, seen_ns=0,
            opened_ns=START_NS + opened_s * SECOND, **more,
        )  # fmt: skip

    loss = Loss(at_ns=START_NS, step=60, ranks=2)
    hang, killed = incident("hang", "critical", 15), incident("process_dead", "critical", 40)
    slow, drill = incident("fail_slow", "warning", -1), incident("gpu_lost", "critical", 0, synthetic=True)
    assert cause_of(loss, (slow, drill, killed, hang)) is hang
    assert cause_of(loss, (slow, drill)) is slow
    assert cause_of(loss, (drill, incident("hang", "critical", 121))) is None
