"""Checkpoints for repair over the desk of saves: anew after a restart, and not given up too soon."""

from __future__ import annotations

from unit.test_saves_desk import Play

from gpuvigil_collector.repair.saving import Saving


def test_what_an_earlier_run_asked_for_is_asked_for_anew() -> None:
    play = Play()
    saving = Saving(play.desk)
    assert saving.stands("j", "i1").progress == "waits"  # an earlier run of the collector began it
    play.tick()
    assert {command.arguments["job"] for command in play.sent} == {"j"}
    [request] = play.desk.requests.values()
    play.tell(0, "saved", request.id)
    play.tick()
    assert saving.stands("j", "i1").progress == "done"


def test_a_job_that_nobody_knows_is_waited_for_right_after_the_start_alone() -> None:
    play, now = Play(), [100.0]
    saving = Saving(play.desk, lambda: now[0])
    words = []
    for second in (0, 30, 61, 62):
        now[0] = 100.0 + second
        words.append(saving.stands("stranger", "i1").progress)
        play.tick()
        words.append(saving.stands("stranger", "i1").progress)
    assert words[:4] == ["waits"] * 4, "it may register again"
    assert words[-1] == "failed", "it never does: it can give no checkpoint"
