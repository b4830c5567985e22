"""The desk on a fake clock: what is refused, what becomes of a request, and who is named when it is late."""

from __future__ import annotations

import pytest
from unit.fake_snapshot import SECOND, Fleet
from unit.training_job import FakeJob

from gpuvigil_collector.config import SaveSettings
from gpuvigil_collector.ingest.frames import Result
from gpuvigil_collector.saves.desk import RefusedError, SaveDesk


class Play:
    """A job of four ranks on two nodes that has opted in, and the desk."""

    def __init__(self, **settings):
        self.job, self.sent, self.hung = FakeJob(), [], False
        self.desk = SaveDesk(SaveSettings(**settings), self.sent.append)
        self.job.run(5)
        for rank in self.by_name["j"].ranks.values():
            rank.on_request = "save"

    @property
    def by_name(self):
        return self.job.training.jobs.by_name

    @property
    def fleet(self) -> Fleet:
        return self.job.fleet

    def tick(self, *results, seconds=1):
        snapshot = self.fleet.advance(seconds)
        self.desk.tick(snapshot, self.by_name, results, lambda _: self.hung)

    def ask(self, job="j"):
        future = self.desk.ask(job, "operator")
        self.tick()
        return future.result(timeout=0)

    def tell(self, rank, outcome, request, **more):
        fields = {"outcome": outcome, "request": request, "step": "120", "path": "/c/x", "bytes": "99",
                  "seconds": "1.5"} | more  # fmt: skip
        self.fleet.event(f"n{rank // 2}", "checkpoint", f"rank:j/{rank}", origin="job", fields=fields)


def test_asked_armed_saved():
    play = Play()
    request = play.ask()
    assert {command.node for command in play.sent} == {"n0", "n1"}
    assert {command.arguments["number"] for command in play.sent} == {str(request.number)}
    play.tick(Result("n0", request.id, True, "armed 2 of 2 ranks"))
    assert request.state == "asked"
    play.tick(Result("n1", request.id, True, "armed 2 of 2 ranks"))
    assert request.state == "armed"
    play.tell(1, "saved", request.id)
    play.tick()
    assert request.state == "armed", "rank 0 publishes"
    play.tell(0, "saved", request.id)
    play.tick()
    assert (request.state, request.step, request.path, request.size) == ("saved", 120, "/c/x", 99)
    assert play.desk.newest["j"].step == 120


@pytest.mark.parametrize(("make", "why"), [
    (lambda play: play.job.down(3) or play.job.run(1), "3 of 4 ranks live"),
    (lambda play: setattr(play.by_name["j"].ranks[2], "on_request", ""), "has not opted in"),
    (lambda play: setattr(play, "hung", True), "it makes no step"),
    (lambda play: play.ask(), "is under way"),
    (lambda play: play.by_name.clear(), "nothing is known of it"),
])  # fmt: skip
def test_what_would_do_harm_or_nothing_is_refused(make, why):
    play = Play()
    make(play)
    before = len(play.sent)
    with pytest.raises(RefusedError, match=why):
        play.ask()
    assert len(play.sent) == before, "nobody was asked"


def test_off_is_off_and_an_interval_is_kept():
    with pytest.raises(RefusedError, match="are off"):
        Play(requests="off").ask()
    play = Play()
    request = play.ask()
    play.tell(0, "failed", request.id, detail="rank 2: OSError")
    play.tick()
    assert (request.state, request.detail) == ("failed", "rank 2: OSError")
    with pytest.raises(RefusedError, match="next in"):
        play.ask()
    play.tick(seconds=70)
    assert play.ask().number > request.number


def test_an_agent_that_refuses_ends_it():
    play = Play()
    request = play.ask()
    play.tick(Result("n1", request.id, False, "no rank of job j runs here"))
    assert (request.state, request.detail) == ("refused", "n1: no rank of job j runs here")


@pytest.mark.parametrize(("make", "why"), [
    (lambda play, request: None, "no answer from n0, n1"),
    (lambda play, request: [play.tick(Result(n, request.id, True, "armed")) for n in ("n0", "n1")], "hangs"),
    (lambda play, request: [play.tick(Result(n, request.id, True, "armed")) for n in ("n0", "n1")]
     + [play.tell(3, "partial", request.id), play.tick()], "rank 3: partial"),
])  # fmt: skip
def test_a_deadline_says_who_has_not_answered(make, why):
    play = Play()
    request = play.ask()
    make(play, request)
    play.tick(seconds=601)
    assert request.state == "deadline" and why in request.detail
    play.tell(0, "saved", request.id)
    play.tick()
    assert request.state == "deadline", "what comes too late changes no outcome"
    assert play.desk.newest["j"].step == 120, "but the checkpoint is there"


def test_words_of_others_change_nothing():
    play = Play()
    request = play.ask()
    for rank, outcome, fields in (
        (0, "saved", {"request": "other"}),
        (0, "great", {}),
        (0, "saved", {"bytes": "-7"}),
    ):
        play.tell(rank, outcome, fields.pop("request", "x"), **fields)
    play.fleet.event(
        "n0", "checkpoint", "node", origin="job", fields={"outcome": "saved", "request": request.id}
    )
    play.fleet.event("n0", "checkpoint", "rank:k/0", origin="job",
                     fields={"outcome": "saved", "request": request.id})  # fmt: skip
    play.tick(Result("n9", request.id, False, "liar"), Result("n0", "nobody", False, "x"))
    assert request.state == "asked"
    assert SECOND
