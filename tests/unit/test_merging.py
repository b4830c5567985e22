"""Small recordings become few: rows and order kept, quota held, what cannot be merged left alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integration.ingest_host import counting

from gpuvigil_collector.ingest import merging, segment_names
from gpuvigil_collector.ingest.dictionaries import UNUSED_S
from gpuvigil_collector.ingest.hooks import no_hook
from gpuvigil_collector.ingest.merging import File
from gpuvigil_collector.ingest.segment_rows import MetricRow
from gpuvigil_collector.ingest.segments import Segments, Unit
from gpuvigil_protos.codec import pack_float32

DIGEST = "ab" * 32


def unit(number: int, digest: str = DIGEST, values: int = 3) -> Unit:
    packed = pack_float32([number / 7 + n for n in range(values)])
    row = MetricRow("n1", "boot-1", number, 7, "live", 0, 1, digest, 1, 5, [10], packed)
    return Unit(number, metrics=[row], dictionaries={digest: b'{"groups":[]}'})


def filled(folder: Path, numbers: range, quota: int = 1 << 30) -> Segments:
    segments = Segments(folder, 0, quota, no_hook)
    for number in numbers:
        segments.write(unit(number))
    return segments


def rows(folder: Path) -> list[int]:
    tables = [pq.read_table(path, columns=["sequence"]) for path in counting(folder, "metrics")]
    return [n for table in tables for n in table["sequence"].to_pylist()]


def test_parts_become_one_file_with_all_rows_in_order(tmp_path):
    segments = filled(tmp_path, range(1, 21))
    before = [path.stat().st_size for path in tmp_path.glob("*.parquet")]
    assert segments.merge(15, 0)
    assert not segments.merge(15, 0), "what the ledger does not cover yet stays as it is"
    names = sorted(path.name for path in tmp_path.glob("*.parquet"))
    assert names[0] == "metrics-00-000000000001-000000000015.parquet"
    assert len(names) == segments.count == 6
    assert rows(tmp_path) == list(range(1, 21))
    assert segments.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.parquet")) < sum(before)
    again = Segments(tmp_path, 0, 1 << 30, no_hook)
    assert (again.newest(), again.count, again.bytes) == (20, 6, segments.bytes)
    assert sorted(n for _, n in again.keys_after(14)) == list(range(1, 21)), "the merged file reaches to 15"
    assert sorted(n for _, n in again.keys_after(15)) == [16, 17, 18, 19, 20]


def test_young_parts_wait(tmp_path):
    segments = filled(tmp_path, range(1, 4))
    assert not segments.merge(3, 600)
    past = time.time() - 700
    os.utime(tmp_path / segment_names.part("metrics", 0, 1), (past, past))
    assert segments.merge(3, 600)


def test_superseded_parts_go_at_the_next_start_and_count_for_nobody(tmp_path):
    segments = filled(tmp_path, range(1, 4))
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert segments.merge(3, 0)
    for path, data in kept.items():
        path.write_bytes(data)
    assert rows(tmp_path) == [1, 2, 3]
    assert Segments(tmp_path, 0, 1 << 30, no_hook).count == 1
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_the_quota_holds_while_segments_are_merged(tmp_path):
    quota = 120_000
    segments = filled(tmp_path, range(1, 2), quota)
    highest = 0
    for number in range(2, 200):
        segments.write(unit(number, values=200))
        if number % 5 == 0:
            segments.merge(number, 0)
        highest = max(highest, sum(path.stat().st_size for path in tmp_path.glob("*.parquet")))
    assert highest <= quota
    assert segments.deleted > 0
    kept = rows(tmp_path)
    assert kept == list(range(kept[0], 200)), "the newest, without a hole"


def test_a_damaged_part_is_left_alone_and_said(tmp_path, capfd):
    segments = filled(tmp_path, range(1, 4))
    damaged = tmp_path / segment_names.part("metrics", 0, 2)
    damaged.write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    assert not segments.merge(3, 0)
    assert not segments.merge(3, 0)
    assert capfd.readouterr().err.count("recordings_not_merged") <= 1
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    assert not list(tmp_path.glob("*.tmp"))


def test_a_dictionary_without_recordings_is_deleted_and_one_in_use_is_not(tmp_path):
    segments = filled(tmp_path, range(1, 3))
    segments.write(unit(3, digest="cd" * 32))
    (tmp_path / segment_names.part("metrics", 0, 3)).unlink()
    later = time.time() + UNUSED_S + 60
    assert segments.dictionaries.sweep(time.time()) == 0, "young ones stay"
    assert segments.dictionaries.sweep(later) == 1
    folder = tmp_path / "dictionaries"
    assert [path.name for path in folder.iterdir()] == [f"{DIGEST}.json"]
    other = Segments(tmp_path, 1, 1 << 30, no_hook)  # a sibling that meets the dictionary again
    other.write(unit(4, digest="cd" * 32))
    assert (folder / f"{'cd' * 32}.json").exists()


PARTS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([100, merging.PART_BYTES + 1, merging.PART_BYTES])), max_size=40
)


@given(PARTS, st.integers(0, 45), st.booleans())
def test_a_run_is_of_neighbouring_small_covered_parts(parts, committed, old):
    files = []
    for number, (is_merged, size) in enumerate(parts, 1):
        name = segment_names.merged("metrics", 0, number, number) if is_merged else None
        path = Path(name or segment_names.part("metrics", 0, number))
        files.append(File(path, size, segment_names.parse(path)))
    run = merging.choose(files, committed, lambda _: old)
    assert len(run) != 1
    numbers = [file.name.first for file in run]
    assert numbers == list(range(numbers[0], numbers[0] + len(run))) if run else not numbers
    assert all(not f.name.merged and f.size <= merging.PART_BYTES and f.name.last <= committed for f in run)
    full = sum(file.size for file in run) >= merging.GROUP_BYTES
    assert old or full or not run


@pytest.mark.parametrize(
    "name", ["metrics-00-1.parquet", "other-00-000000000001.parquet", "x", "metrics.parquet"]
)
def test_a_stranger_s_file_has_no_name(name):
    assert segment_names.parse(Path(name)) is None
    assert segment_names.split([Path(name)]) == ([], [])
