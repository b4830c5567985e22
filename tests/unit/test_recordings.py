"""Durable means on disk: the order of segment, ledger and watermark, with the disk failing at each step."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gpuvigil_collector.ingest.hooks import AFTER_RENAME_BEFORE_LEDGER, BEFORE_SEGMENT_FSYNC
from gpuvigil_collector.ingest.ledger import Ledger, LedgerFile
from gpuvigil_collector.ingest.recorder import Recorder, recover
from gpuvigil_collector.ingest.segment_rows import EventRow, MetricRow
from gpuvigil_collector.ingest.segments import Segments
from gpuvigil_collector.ingest.settings import RecordingsConfig
from gpuvigil_protos.codec import pack_float32
from gpuvigil_protos.settings import Bytes

KEY = ("n1", "boot-1", "metrics")
EVENTS = ("n1", "boot-1", "events")


class Disk:
    """A hook that fails where told, as a full disk does."""

    def __init__(self) -> None:
        self.fail_at = ""
        self.passing = lambda: None

    def __call__(self, point: str) -> None:
        self.passing()
        if point == self.fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")


class Rig:
    """A recorder on a folder; `crash` forgets all but the folder."""

    def __init__(self, folder: Path, quota: int = 1 << 30, pending_max: int = 1 << 20) -> None:
        self.disk = Disk()
        self.folder = folder
        self.recordings = folder / "recordings"
        self.file = LedgerFile(folder / "ledger-00.sqlite")
        self.segments = Segments(self.recordings, 0, quota, self.disk)
        self.recovered = recover(self.segments, self.file)
        self.ledger = Ledger([LedgerFile(folder / "ledger-00.sqlite")])
        self.ledger.claim("n1")
        config = RecordingsConfig(pending_max=Bytes(pending_max))
        self.recorder = Recorder(config, self.segments, self.file, self.ledger, self.disk)

    def put(self, sequence: int, values: int = 3) -> None:
        row = MetricRow(
            "n1", "boot-1", sequence, 7, "live", 0, 1, "ab" * 32, 1, 5, [10], pack_float32([1.5] * values)
        )
        self.ledger.delivery(KEY).received.add(sequence, sequence)
        self.recorder.add_batch(KEY, [row], "ab" * 32, b'{"groups":[]}')

    def put_event(self, sequence: int) -> None:
        row = EventRow(
            "n1",
            "boot-1",
            sequence,
            "live",
            1,
            2,
            "xid",
            "driver",
            "gpu:GPU-0",
            79,
            "t",
            [("pci", "x")],
            False,
        )
        self.ledger.delivery(EVENTS).received.add(sequence, sequence)
        self.recorder.add_event(EVENTS, row)

    @property
    def durable(self) -> int:
        return self.ledger.delivery(KEY).durable.watermark

    def rows(self, kind: str = "metrics") -> list[int]:
        paths = sorted(self.recordings.glob(f"{kind}-*.parquet"))
        return [
            n for path in paths for n in pq.read_table(path, columns=["sequence"])["sequence"].to_pylist()
        ]


async def test_durable_moves_with_the_flush_and_the_rows_read_back(tmp_path):
    rig = Rig(tmp_path)
    rig.put(1)
    rig.put(2)
    rig.put_event(1)
    assert rig.durable == 0
    assert await rig.recorder.flush()
    assert (rig.durable, rig.rows(), rig.rows("events")) == (2, [1, 2], [1])
    table = pq.read_table(next(rig.recordings.glob("metrics-*.parquet"))).to_pylist()
    assert table[0]["values"] == [1.5] * 3
    assert table[0]["tick_ns"] == [10]
    assert (table[0]["crc"], table[0]["blocks"]) == (7, 1)
    dictionary = rig.recordings / "dictionaries" / f"{table[0]['dictionary_hash']}.json"
    assert json.loads(dictionary.read_text()) == {"groups": []}


@pytest.mark.parametrize("point", [BEFORE_SEGMENT_FSYNC, AFTER_RENAME_BEFORE_LEDGER])
async def test_a_full_disk_moves_nothing_and_loses_nothing(tmp_path, point):
    rig = Rig(tmp_path)
    told = []
    rig.recorder.when_durable(told.append)
    rig.disk.fail_at = point
    rig.put(1)
    rig.put_event(1)
    assert not await rig.recorder.flush()
    rig.put(2)
    assert not await rig.recorder.flush()
    assert (rig.durable, told, rig.recorder.failing) == (0, [], True)
    rig.disk.fail_at = ""
    assert await rig.recorder.flush()
    assert rig.durable == 1
    assert await rig.recorder.flush()
    assert (rig.durable, rig.rows(), rig.rows("events"), rig.recorder.failing) == (2, [1, 2], [1], False)


async def test_failing_speaks_of_a_refused_flush_and_not_of_one_that_is_under_way(tmp_path):
    rig = Rig(tmp_path)
    during = []
    rig.disk.passing = lambda: during.append(rig.recorder.failing)
    rig.put(1)
    assert await rig.recorder.flush()
    assert during and not any(during)
    rig.disk.fail_at = BEFORE_SEGMENT_FSYNC
    rig.put(2)
    assert not await rig.recorder.flush()
    assert rig.recorder.failing
    rig.disk.fail_at = ""
    assert await rig.recorder.flush()
    assert not rig.recorder.failing


async def test_memory_is_bounded_while_the_disk_is_full(tmp_path):
    rig = Rig(tmp_path, pending_max=100_000)
    rig.disk.fail_at = BEFORE_SEGMENT_FSYNC
    sequence = 0
    while not rig.recorder.full:
        sequence += 1
        rig.put(sequence, values=1000)
        await rig.recorder.flush()
        assert sequence < 100
    assert rig.recorder.pending_bytes < 110_000
    rig.disk.fail_at = ""
    await rig.recorder.flush()
    await rig.recorder.flush()
    assert (rig.durable, rig.recorder.full) == (sequence, False)


async def test_a_locked_ledger_moves_nothing(tmp_path):
    rig = Rig(tmp_path)
    rig.file._db.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "ledger-00.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    rig.put(1)
    assert not await rig.recorder.flush()
    assert rig.durable == 0
    other.execute("ROLLBACK")
    assert await rig.recorder.flush()
    assert (rig.durable, rig.rows()) == (1, [1])


async def test_a_crash_between_rename_and_ledger_neither_loses_nor_doubles(tmp_path):
    rig = Rig(tmp_path)
    rig.put(1)
    await rig.recorder.flush()
    rig.disk.fail_at = AFTER_RENAME_BEFORE_LEDGER
    rig.put(2)
    rig.put_event(1)
    assert not await rig.recorder.flush()
    after = Rig(tmp_path)
    assert after.recovered == 2
    assert after.durable == 2
    assert 2 in after.ledger.delivery(KEY).received
    assert 1 in after.ledger.delivery(EVENTS).durable
    after.put(3)
    assert await after.recorder.flush()
    assert (after.rows(), after.rows("events")) == ([1, 2, 3], [1])
    assert Rig(tmp_path).recovered == 0


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"\0" * 500])
async def test_a_damaged_newest_segment_is_set_aside_and_its_rows_are_asked_for_again(tmp_path, damage):
    rig = Rig(tmp_path)
    rig.put(1)
    await rig.recorder.flush()
    rig.disk.fail_at = AFTER_RENAME_BEFORE_LEDGER
    rig.put(2)
    assert not await rig.recorder.flush()
    newest = max(rig.recordings.glob("metrics-*.parquet"))
    newest.write_bytes(damage)
    after = Rig(tmp_path)
    assert (after.recovered, after.durable, after.rows()) == (0, 1, [1])
    assert newest.with_name(newest.name + ".broken").read_bytes() == damage
    after.put(2)
    assert await after.recorder.flush()
    assert (after.durable, after.rows()) == (2, [1, 2])


async def test_a_crash_before_the_fsync_leaves_nothing_behind(tmp_path):
    rig = Rig(tmp_path)
    rig.disk.fail_at = BEFORE_SEGMENT_FSYNC
    rig.put(1)
    assert not await rig.recorder.flush()
    after = Rig(tmp_path)
    assert (after.recovered, after.durable, after.rows()) == (0, 0, [])
    assert not list(after.recordings.glob("*.tmp"))


async def test_the_quota_takes_the_oldest_segments_and_counts_them(tmp_path):
    rig = Rig(tmp_path, quota=20_000)
    for sequence in range(1, 31):
        rig.put(sequence)
        await rig.recorder.flush()
    kept = rig.rows()
    assert kept == list(range(kept[0], 31))
    assert kept[0] > 1
    assert rig.segments.deleted == 30 - len(kept)
    files = rig.recordings.glob("*.parquet")
    assert sum(path.stat().st_size for path in files) == rig.segments.bytes <= 20_000
    again = Segments(rig.recordings, 0, 5_000, rig.disk)
    assert again.bytes == rig.segments.bytes


async def test_nothing_is_durable_before_the_file_its_name_and_its_folder_are_synced(tmp_path, monkeypatch):
    """The order that a power cut needs: file synced, renamed, folder synced, and only then the ledger."""
    rig, steps = Rig(tmp_path), []

    def recording(name, call, what):
        def step(*arguments):
            steps.append((name, what(*arguments)))
            return call(*arguments)

        return step

    def synced(fd):
        return Path(f"/proc/self/fd/{fd}").readlink().name

    monkeypatch.setattr(os, "fsync", recording("sync", os.fsync, synced))
    monkeypatch.setattr(Path, "rename", recording("rename", Path.rename, lambda _, new: new.name))
    monkeypatch.setattr(rig.file, "commit", recording("commit", rig.file.commit, lambda *_: "ledger"))
    rig.put(1)
    assert await rig.recorder.flush()
    (segment,) = (path.name for path in rig.recordings.glob("metrics-*.parquet"))
    (words,) = (path.name for path in (rig.recordings / "dictionaries").glob("*.json"))
    assert steps == [
        ("sync", f"{words}.tmp"),
        ("rename", words),
        ("sync", "dictionaries"),
        ("sync", f"{segment}.tmp"),
        ("rename", segment),
        ("sync", "recordings"),
        ("commit", "ledger"),
    ]


async def test_refusals_are_told_only_when_the_ledger_has_them(tmp_path):
    rig = Rig(tmp_path)
    told = []
    rig.ledger.delivery(KEY).received.add(1, 1)
    rig.recorder.add_change(KEY, lambda: told.append("refusal"))
    rig.disk.fail_at = AFTER_RENAME_BEFORE_LEDGER
    assert not await rig.recorder.flush()
    assert told == []
    rig.disk.fail_at = ""
    assert await rig.recorder.flush()
    assert (told, rig.durable) == (["refusal"], 1)
    assert Rig(tmp_path).durable == 1
