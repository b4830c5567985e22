"""R2, R3 with real processes: killed at each moment, stopped while leading; judged by the outside's log."""

from __future__ import annotations

import pytest
from integration.executor_world import killed_then_resumed, outside, repair, stopped_leaders

MOMENTS = 8  # before and after each of: intended, issued, taken, done


def test_r3_the_moments_are_all_there_are(tmp_path):
    world = outside(tmp_path, fenced=False, delay=0.3)
    status, said = repair(world, 0, "a0")
    assert (status, int(said[0])) == (0, MOMENTS)
    assert said[1:] == ["a0:intended", "a0:issued", "a0:issued", "a0:done"]
    assert world.log() == [("a0", "n1", 7)]


@pytest.mark.parametrize("moment", [-1, *range(1, MOMENTS + 1)])
def test_r3_killed_at_each_transition_no_effect_is_repeated(tmp_path, moment, record_property):
    lines = killed_then_resumed(tmp_path, (moment,))
    assert lines, "and the work is done in the end"
    record_property("n", 1)


@pytest.mark.parametrize("again", [-1, 1, 3])
def test_r3_killed_again_while_it_resumes(tmp_path, again):
    killed_then_resumed(tmp_path, (-1, again))


def test_r2_a_leader_that_is_stopped_and_goes_on_acts_no_more(tmp_path, record_property):
    seen = stopped_leaders(tmp_path, stops=3, seed=1)
    record_property("n", seen["takeovers"])
    assert seen["takeovers"] == 3 and seen["effects"] > 6
