"""Culprits from Flight Recorder dumps: both recorded hangs, simulated faults, and files that mean harm."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from unit.collective_world import World

from gpuvigil_cli.__main__ import main
from gpuvigil_detectors.training.bounded_pickle import DumpError, read_pickle
from gpuvigil_detectors.training.flight_recorder import judge_files

SEEDS = range(8)
MUTANTS = 3000


@pytest.mark.needs_shared
@pytest.mark.parametrize(("folder", "culprits"), [("gpu_error_1st", [12, 14]), ("lock_gil_1st", [9, 14])])
def test_both_recorded_hangs_name_their_two_ranks_and_nobody_else(
    shared: Path, capsys: pytest.CaptureFixture[str], folder: str, culprits: list[int]
) -> None:
    assert main(["flight-recorder", str(shared / "data/flight_recorder" / folder), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert set(verdict) == {"culprits", "kind", "group", "evidence"}
    assert verdict["culprits"] == culprits
    assert f"rank {culprits[0]} " in verdict["evidence"] and "of 16 ranks wait" in verdict["evidence"]


def played(fault: str, seed: int) -> tuple[int, list[tuple[str, bytes]], bool]:
    """One faulted run: the culprit, all dumps, and whether the devices' times were recorded."""
    rng = np.random.default_rng(seed)
    world = World(rng, tp=2, dp=int(rng.integers(2, 4)), pp=2)
    culprit = int(rng.integers(world.size))
    length = len(world.programs[culprit])
    trace = world.run(fault, (culprit,), int(rng.integers(length // 3, 2 * length // 3)))
    timing = bool(seed % 2)
    return culprit, sorted(trace.dumps(timing=timing, as_json=seed % 3 == 0).items()), timing


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", ["host", "no_dump"])
def test_a_rank_that_never_enqueued_or_left_no_dump_is_named(fault: str, seed: int) -> None:
    culprit, files, _ = played(fault, seed)
    assert judge_files(files).culprits == (culprit,)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", ["device_before", "device_after", "skip", "resize"])
def test_nobody_innocent_is_blamed_and_what_cannot_be_told_apart_is_said_to_be(fault: str, seed: int) -> None:
    culprit, files, timing = played(fault, seed)
    verdict = judge_files(files)
    assert verdict.culprits in ((), (culprit,))
    if fault == "device_before" and timing:
        assert verdict.culprits == (culprit,)
    if not verdict.culprits:
        assert verdict.kind in ("unknown", "desync") and verdict.evidence


def test_the_order_of_the_files_changes_nothing() -> None:
    culprit, files, _ = played("host", 3)
    assert judge_files(reversed(files)) == judge_files(files)
    assert judge_files(files).culprits == (culprit,)


class Harm:
    """What an attacker's pickle would have the reader do."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


def test_a_pickle_that_calls_something_is_refused_before_it_can(tmp_path: Path) -> None:
    for protocol in range(6):
        data = pickle.dumps({"entries": [Harm(tmp_path / "harm")]}, protocol)
        with pytest.raises(DumpError):
            read_pickle(data)
    assert not (tmp_path / "harm").exists()


def test_plain_data_reads_back_as_the_standard_unpickler_reads_it() -> None:
    value = {"a": [1, -2, 2.5, None, True, "text", (1, 2), {}], "b": {"c": [[], ()]}, "big": 1 << 62}
    for protocol in (2, 3, 4, 5):
        assert read_pickle(pickle.dumps(value, protocol)) == value


def test_mutated_dumps_give_data_or_a_named_error_and_never_more() -> None:
    rng = np.random.default_rng(7)
    _, files, _ = played("host", 1)
    whole = files[0][1][:4000]
    for _ in range(MUTANTS):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=int(rng.integers(1, 6))):
            data[place] = int(rng.integers(256))
        data = data[: int(rng.integers(1, len(data) + 1))] if rng.random() < 0.3 else data
        try:
            read_pickle(bytes(data))
        except DumpError as error:
            assert str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02.",
        b"(" * 100_000,
        b"]" * 100 + b"a" * 99 + b".",
        b"{\x93.",
        b"X\xff\xff\xff\x7f",
        b"r" * 99,
    ],
)
def test_bombs_are_refused(data: bytes) -> None:
    with pytest.raises(DumpError):
        read_pickle(data)


def test_a_folder_without_a_dump_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flight-recorder", str(tmp_path / "nowhere")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "link").symlink_to("/dev/zero")
    assert main(["flight-recorder", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "no dump could be read" in told and told.count("\n") == 1


def test_text_of_a_dump_cannot_reach_the_terminal_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, files, _ = played("host", 3)  # seed 3: JSON
    for name, data in files:
        (tmp_path / name).write_bytes(data.replace(b"tp0.0", b"\\u001b[31m[red]"))
    assert main(["flight-recorder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and io.StringIO(out).readline()
