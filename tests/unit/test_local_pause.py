"""R10: `gpuvigil pause --local`, with no collector anywhere: at once, and until its file is gone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from unit.action_help import World, action

from gpuvigil_cli import local_pause
from gpuvigil_cli.__main__ import main
from gpuvigil_protos import pause


@pytest.fixture
def files(tmp_path, monkeypatch):
    """As on a node: the one that stays first. No collector answers at the port either."""
    found = (tmp_path / "etc/gpuvigil/pause", tmp_path / "run/gpuvigil/pause")
    monkeypatch.setattr(local_pause, "STAYS_FIRST", found)
    monkeypatch.setenv("GPUVIGIL_URL", "http://127.0.0.1:1")
    return found


def test_the_files_are_those_that_agent_helper_and_collector_look_at():
    assert {str(file) for file in local_pause.STAYS_FIRST} == set(pause.FILES)
    assert str(local_pause.STAYS_FIRST[0]).startswith("/etc/"), "the one that stays over a reboot"


def test_r10_pause_local_needs_no_collector_and_holds_within_a_second(files, tmp_path, capsys):
    world = World(tmp_path, paused=lambda: pause.paused(files))
    world.executor.resume()
    began = time.monotonic()
    assert main(["pause", "--local", "rack 3 \x1b[31msmells\n"]) == 0
    assert pause.paused(files) and time.monotonic() - began < 3, "the promise is 1 s, with slack of 3"
    assert str(files[0]) in capsys.readouterr().out and files[0].stat().st_mode & 0o777 == 0o644
    world.executor.submit(action())
    world.step(3)
    assert world.fake.applied == [] and "rack 3 ?[31msmells" in world.store.get("a1").outcome
    after = World(tmp_path / "again", paused=lambda: pause.paused(files))  # the program starts anew
    after.executor.resume()
    after.executor.submit(action("a2"))
    after.step(3)
    assert after.fake.applied == [], "a pause outlives a restart"
    assert main(["resume", "--local"]) == 0
    after.executor.submit(action("a3"))
    after.step(3)
    assert after.fake.applied == ["a3"]


def test_resume_removes_every_file_and_says_when_there_is_none(files, capsys):
    assert main(["pause", "--local"]) == 0
    files[1].parent.mkdir(parents=True)
    files[1].write_text("by hand")
    assert main(["resume", "--local"]) == 0
    assert not files[0].exists() and not files[1].exists()
    capsys.readouterr()
    assert main(["resume", "--local"]) == 1
    assert "no file pauses this node" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_leaves_the_other_and_none_is_an_error(files, tmp_path, capsys):
    (tmp_path / "etc").write_text("a file, no folder")
    assert main(["pause", "--local", "x"]) == 0
    assert files[1].exists() and pause.paused(files)
    files[1].unlink()
    files[1].parent.rmdir()
    files[1].parent.parent.rmdir()
    (tmp_path / "run").write_text("too")
    assert main(["pause", "--local", "x"]) == 2
    told = capsys.readouterr().err
    assert "this node is not paused" in told and str(files[0]) in told and str(files[1]) in told


def test_a_link_that_was_left_there_is_replaced_and_never_followed(files, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("untouched")
    files[0].parent.mkdir(parents=True)
    files[0].symlink_to(secret)
    local_pause.hold("why", files)
    assert secret.read_text() == "untouched" and not files[0].is_symlink()
    assert [each.name for each in Path(files[0].parent).iterdir()] == ["pause"], "no half file is left"
    assert os.access(files[0], os.R_OK)
