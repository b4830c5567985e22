"""Checkpoints on disk: only whole ones count, spoilt ones are passed over, orphans are fenced."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuvigil import checkpoints
from gpuvigil.checkpoints import Fence, FencedError


@pytest.fixture
def fence(tmp_path):
    made = Fence(tmp_path)
    made.take()
    return made


def write(folder, step, fence, files=None):
    partial = folder / (checkpoints.folder_name(step, fence.generation) + ".partial")
    partial.mkdir()
    for name, data in (files or {"rank0.pt": b"a" * 1000, "sub/rank1.pt": b"b" * 10}).items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(data)
    table = {name: checkpoints.digest(partial / name) for name in checkpoints.files_of(partial)}
    return checkpoints.finish(partial, step, fence, table)


def test_r8_the_newest_whole_one_is_found_and_partial_ones_never(tmp_path, fence):
    assert checkpoints.newest(tmp_path) is None
    for step in (10, 300, 20):
        write(tmp_path, step, fence)
    (tmp_path / (checkpoints.folder_name(400, 1) + ".partial")).mkdir()
    (tmp_path / checkpoints.folder_name(500, 1)).mkdir()  # a name alone
    found = checkpoints.newest(tmp_path)
    assert (found.step, found.generation, found.size) == (300, 1, 1010)
    assert checkpoints.newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("spoil", [
    lambda path: (path / "rank0.pt").write_bytes(b"a" * 999),
    lambda path: (path / "rank0.pt").write_bytes(b"a" * 999 + b"c"),
    lambda path: (path / "sub/rank1.pt").unlink(),
    lambda path: (path / checkpoints.MANIFEST).unlink(),
    lambda path: (path / checkpoints.MANIFEST).write_bytes(b"{"),
    lambda path: (path / checkpoints.MANIFEST).write_bytes(b"[]"),
    lambda path: (path / checkpoints.MANIFEST).write_bytes(b"[" * 100_000),
    lambda path: (path / checkpoints.MANIFEST).write_text(json.dumps(
        {"step": 20, "generation": 1, "files": {"../../etc/passwd": [1, "x"]}})),
    lambda path: (path / checkpoints.MANIFEST).write_text(json.dumps(
        {"step": 21, "generation": 1, "files": {}})),
], ids=["short", "flipped", "missing", "absent", "cut", "no table", "deep", "leaves", "other"])  # fmt: skip
def test_r8_a_spoilt_one_is_passed_over_for_the_one_before(tmp_path, fence, spoil):
    write(tmp_path, 10, fence)
    spoil(write(tmp_path, 20, fence).path)
    assert checkpoints.newest(tmp_path).step == 10


def test_an_older_attempt_is_fenced_and_the_newer_one_writes(tmp_path, fence):
    fence.check()
    newer = Fence(tmp_path)
    assert newer.take() == 2
    with pytest.raises(FencedError, match=r"1.*2: a newer attempt"):
        fence.check()
    with pytest.raises(FencedError):
        write(tmp_path, 30, fence)
    assert checkpoints.newest(tmp_path) is None, "what an orphan wrote is not published"
    assert write(tmp_path, 30, newer).generation == 2


def test_of_one_step_the_later_attempt_counts(tmp_path, fence):
    write(tmp_path, 10, fence)
    newer = Fence(tmp_path)
    newer.take()
    write(tmp_path, 10, newer)
    assert checkpoints.newest(tmp_path).generation == 2


def test_prune_keeps_the_newest_and_clears_what_older_attempts_left(tmp_path, fence):
    for step in (1, 2, 3, 4):
        write(tmp_path, step, fence)
    mine = tmp_path / (checkpoints.folder_name(9, 2) + ".partial")
    old = tmp_path / (checkpoints.folder_name(8, 1) + ".partial")
    mine.mkdir(), old.mkdir()
    checkpoints.prune(tmp_path, keep=2, generation=2)
    left = sorted(path.name for path in tmp_path.glob("step-*"))
    assert left == sorted([checkpoints.folder_name(3, 1), checkpoints.folder_name(4, 1), mine.name])


def test_links_are_no_part_of_a_checkpoint(tmp_path, fence):
    partial = tmp_path / "x"
    partial.mkdir()
    (partial / "a").write_bytes(b"1")
    (partial / "b").symlink_to("/etc/passwd")
    assert checkpoints.files_of(partial) == ["a"]


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_manifest_is_read_or_passed_over(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    path = folder / checkpoints.folder_name(1, 1)
    path.mkdir()
    (path / checkpoints.MANIFEST).write_bytes(data)
    assert checkpoints.newest(folder) is None


@given(st.binary(max_size=30))
@settings(max_examples=50, deadline=None)
def test_any_generation_file_leaves_a_number(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("generation")
    (folder / "GENERATION").write_bytes(data)
    assert Fence(folder).take() >= 1
