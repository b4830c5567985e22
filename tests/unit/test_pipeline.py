"""The brain's loop and its line of stages, on a fake store."""

from __future__ import annotations

import threading
import time

import pytest
from unit.brain_help import Rig
from unit.incident_help import finding, gpu

from gpuvigil_collector.brain import Brain
from gpuvigil_collector.config import Tick
from gpuvigil_detectors.models import ModelError
from gpuvigil_protos.settings import Seconds

SLOW = Tick(interval=Seconds(60), event_spacing=Seconds(0.05))


class Boom(Exception):
    """A bug."""


def wait_for(true, within_s=10.0):
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def test_one_line_from_finding_to_view_and_journal(rig):
    rig.structural.findings = [finding("gpu_lost", gpu("n1"))]
    view = rig.tick()
    (incident,) = view.open.values()
    assert incident.fault_class == "gpu_lost" and view.ticks == 1
    told = [entry["what"] for entry in rig.journal.entries(incident.id)]
    assert told[:2] == ["opened", "case_opened"] and told.count("opened") == 1
    assert rig.statistical.masked == {gpu("n1")}, "nothing is learned from what is in an incident"


def test_an_urgent_tick_judges_facts_at_once_and_keeps_the_statistical_findings(rig):
    rig.statistical.findings = [finding("gpu_slow", gpu("n0"), origin="statistics")]
    for _ in range(5):
        rig.tick()
    assert rig.statistical.calls == 5 and len(rig.pipeline.view.open) == 1
    rig.rules.findings = [finding("gpu_lost", gpu("n1"))]
    view = rig.tick(0.1, urgent=True)
    assert rig.statistical.calls == 5 and rig.rules.calls == 6
    assert {one.fault_class for one in view.open.values()} == {"gpu_slow", "gpu_lost"}


def test_a_view_does_not_change_under_its_reader(rig):
    before = rig.tick()
    rig.rules.findings = [finding("gpu_lost", gpu("n1"))]
    rig.tick()
    assert before.open == {} and len(rig.pipeline.view.open) == 1


def test_every_stage_is_timed(rig):
    rig.tick()
    stages = {
        sample.labels["stage"]
        for family in rig.counts.stage_seconds.collect()
        for sample in family.samples
        if sample.name.endswith("_count") and sample.value == 1
    }
    line = {
        "snapshot",
        "structural",
        "rules",
        "training",
        "saves",
        "repair",
        "goodput",
        "statistical",
        "incidents",
        "retire",
        "journal",
        "export",
    }
    assert stages == line


def run(rig, pace=SLOW):
    ended = []
    brain = Brain(rig.pipeline, pace, ended.append)
    brain.start()
    wait_for(lambda: rig.rules.calls >= 1)
    return brain, ended


def test_an_event_makes_a_tick_at_once(rig):
    brain, _ = run(rig)
    try:
        started = time.monotonic()
        rig.store.arrived.set()
        wait_for(lambda: rig.rules.calls >= 2)
        assert time.monotonic() - started < 5, "an interval is 60 s, an event does not wait for it"
    finally:
        assert brain.stop(5)


def test_a_storm_of_events_does_not_tick_without_pause(rig):
    brain, _ = run(rig, Tick(interval=Seconds(60), event_spacing=Seconds(0.2)))
    stop = threading.Event()

    def storm():
        while not stop.wait(0.001):
            rig.store.arrived.set()

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        started, before = time.monotonic(), rig.rules.calls
        wait_for(lambda: rig.rules.calls >= before + 5)
        assert time.monotonic() - started > 0.5
    finally:
        stop.set()
        thread.join()
        assert brain.stop(5)


def test_what_came_before_the_stop_is_judged_by_a_last_tick(rig):
    brain, ended = run(rig)
    rig.rules.findings = [finding("gpu_lost", gpu("n1"))]
    assert brain.stop(5)
    assert [one.fault_class for one in brain.view().open.values()] == ["gpu_lost"] and ended == [None]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_a_stage_ends_the_brain_and_is_told(rig):
    def fail(_snapshot):
        raise Boom

    rig.structural.tick = fail
    ended = []
    brain = Brain(rig.pipeline, SLOW, ended.append)
    brain.start()
    wait_for(lambda: ended)
    assert isinstance(ended[0], Boom) and brain.stop(1)


def test_a_tick_that_hangs_shows_as_stalled_and_does_not_block_the_stop(rig):
    gate = threading.Event()
    rig.structural.tick = lambda _snapshot: gate.wait(30) and []
    brain = Brain(rig.pipeline, SLOW, lambda _bug: None)
    brain.start()
    try:
        assert brain.stop(0.2) is False
        assert brain.stalled_s() >= 0.2 and brain.view().ticks == 0
    finally:
        gate.set()


def test_learned_state_is_kept_and_a_broken_file_is_refused(rig, tmp_path):
    learned = rig.pipeline.learned
    loaded = []
    rig.statistical.dump = lambda: b"learned"
    rig.statistical.load = loaded.append
    learned.load()
    assert loaded == [], "nothing was saved yet"
    learned.save()
    learned.load()
    assert loaded == [b"learned"] and not list(tmp_path.glob("*.new"))

    def refuse(_data):
        raise ModelError("cut short")

    rig.statistical.load = refuse
    learned.load()
    rig.tick()
    assert rig.pipeline.view.ticks == 1, "learning starts afresh, the collector works"
