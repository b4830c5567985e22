"""Saving in one process: every outcome by its name, and none of them ends the loop."""

from __future__ import annotations

import os
import shutil
import signal
from collections import namedtuple

import pytest

from gpuvigil import checkpoints, saver
from gpuvigil.saver import Saver


class Told:
    """Stands in for the monitor: what was asked, and what was told to the agent."""

    def __init__(self):
        self.asked, self.words, self.offers, self.phases = 0, [], {}, []

    def request(self):
        return self.asked

    def request_id(self):
        return "r1" if self.asked else ""

    def tell(self, word):
        self.words.append(word)

    def offer(self, name, value):
        self.offers[name] = value

    def phase(self, name):
        self.phases.append(name)
        return open(os.devnull)  # noqa: PTH123 - any context manager


@pytest.fixture
def told():
    return Told()


def one_file(folder):
    (folder / "rank0.pt").write_bytes(b"state" * 100)


def test_saved_on_request_at_a_later_step_and_resumed_from(tmp_path, told):
    made = Saver(tmp_path / "c", one_file, every=4, with_monitor=told)
    assert made.usable and told.offers == {"on_request": "save"}
    assert all(made.step(step) is None for step in range(10))
    told.asked = 1700
    outcomes = [(step, out) for step in range(10, 30) if (out := made.step(step)) is not None]
    [(step, outcome)] = outcomes
    assert step <= 10 + 2 * 4 and (outcome.word, outcome.step, outcome.request) == ("saved", step, "r1")
    assert told.words[-1]["outcome"] == "saved" and told.words[-1]["size"] == 500
    assert told.phases == ["checkpoint"]
    loaded = []
    again = Saver(tmp_path / "c", one_file, with_monitor=Told())
    assert again.resume(lambda folder: loaded.append((folder / "rank0.pt").read_bytes())) == step + 1
    assert loaded == [b"state" * 100] and again.generation == 2


def test_by_interval_and_by_signal(tmp_path, told):
    made = Saver(tmp_path, one_file, every=1, interval=5, keep=2, with_monitor=told, signals=[signal.SIGUSR2])
    try:
        saved = [step for step in range(20) if made.step(step) is not None]
        assert saved == [4, 9, 14, 19]
        assert len(list(tmp_path.glob("step-*"))) == 2, "keep"
        os.kill(os.getpid(), signal.SIGUSR2)
        assert [step for step in range(20, 24) if made.step(step) is not None] == [21]
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


def raises(_folder):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("save", "detail"), [
    (raises, "No space left on device"), (lambda _: None, "expected at least one file"),
    (lambda _: 1 / 0, "ZeroDivisionError"),
])  # fmt: skip
def test_a_save_that_fails_is_told_and_leaves_nothing(tmp_path, told, save, detail):
    made = Saver(tmp_path, save, every=1, interval=1, with_monitor=told)
    outcome = made.step(0)
    assert outcome.word == "failed" and detail in outcome.detail and outcome.detail.startswith("rank 0: ")
    assert list(tmp_path.glob("step-*")) == []
    assert made.step(1).word == "failed", "it tries again"


def test_an_orphan_is_fenced(tmp_path, told):
    orphan = Saver(tmp_path, one_file, interval=1, with_monitor=told)
    Saver(tmp_path, one_file, with_monitor=Told())
    assert orphan.step(0).word == "fenced"
    assert checkpoints.newest(tmp_path) is None


def test_a_directory_without_space_is_not_begun_with(tmp_path, told, monkeypatch):
    made = Saver(tmp_path, one_file, interval=1, with_monitor=told)
    assert made.step(0).word == "saved"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda _: usage(1, 1, 10))
    outcome = made.step(1)
    assert outcome.word == "no_space" and "got 10" in outcome.detail
    assert checkpoints.newest(tmp_path).step == 0


def test_a_directory_that_cannot_be_used_turns_saving_off_and_says_so(tmp_path, told):
    (tmp_path / "file").write_bytes(b"")
    made = Saver(tmp_path / "file", one_file, interval=1, with_monitor=told)
    assert not made.usable and made.step(0) is None and told.offers == {}
    assert told.words[-1]["outcome"] == "unusable"
    assert made.resume(lambda _: pytest.fail("nothing to load")) == 0


def test_a_folder_that_goes_in_mid_save_is_a_failure(tmp_path, told):
    def save(folder):
        one_file(folder)
        shutil.rmtree(folder)

    assert Saver(tmp_path, save, interval=1, with_monitor=told).step(0).word == "failed"


def test_numbers_that_make_no_sense_are_refused(tmp_path, told):
    for wrong in ({"every": 0}, {"interval": -1}, {"keep": 0}, {"timeout_s": 0}):
        with pytest.raises(ValueError, match="expected"):
            Saver(tmp_path, one_file, with_monitor=told, **wrong)
