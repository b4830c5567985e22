"""Health judges the last ten minutes: one bad batch is no reason to be degraded for good."""

from __future__ import annotations

import pytest
from unit.brain_help import Rig, ledger_row

from gpuvigil_collector.web import rows


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    made.tick()
    return made


def health(rig):
    return rows.health(rig.pipeline.view, rig.store.ledger(), [])


@pytest.mark.parametrize(
    ("counter", "row", "sentence"),
    [
        ("refused_total:bad_crc", {"refused": {"bad_crc": 3}}, "1 messages refused in the last 10 min, 3"),
        ("gap_sequences_total:corrupt", {"gap_sequences": 9}, "1 sequences never arrived in the last 10 min"),
    ],
)  # fmt: skip
def test_a_loss_degrades_for_ten_minutes_and_its_total_stays_in_sight(rig, counter, row, sentence):
    assert health(rig)["state"] == "ok"
    rig.store.rows = [ledger_row("n0", **row)]
    rig.store.counted = {counter: rig.store.counters().get(counter, 0.0) + 1}
    for minutes in range(9):
        rig.tick()
        told = health(rig)
        assert told["state"] == "degraded" and told["detail"][0].startswith(sentence), minutes
        rig.tick(59)
    rig.tick(140)
    told = health(rig)
    assert told["state"] == "ok"
    assert any(", none in the last 10 min" in line for line in told["detail"])


def test_losses_that_go_on_degrade_for_as_long(rig):
    for more in range(1, 100):
        rig.store.counted = {"refused_total:bad_crc": 2.0 + more}
        rig.tick(30)
        assert health(rig)["state"] == "degraded"
    assert health(rig)["detail"][0].startswith("20 messages refused"), "600 s of one in 30 s"


def test_a_counter_that_begins_anew_is_no_loss(rig):
    rig.store.counted = {"refused_total:bad_crc": 0.0}
    rig.tick(30)
    assert health(rig)["state"] == "ok"


def test_what_was_counted_before_the_first_tick_is_old(tmp_path):
    made = Rig(tmp_path)
    made.store.counted = {"gap_sequences_total:corrupt": 5.0}
    made.tick()
    assert health(made)["state"] == "ok"
