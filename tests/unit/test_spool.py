"""The spool with its real thread and file: order, watermarks, caps, corruption, full disks, crashes."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuvigil_agent import spool_open, spool_writer
from gpuvigil_agent.ledger import EVENTS, METRICS
from gpuvigil_agent.spool import Spool
from gpuvigil_agent.spool_open import SpoolError
from gpuvigil_agent.spool_store import Row, Store

KERNEL = "11111111-2222-3333-4444-555555555555"


class Full(sqlite3.OperationalError):
    sqlite_errorcode = sqlite3.SQLITE_FULL


class BadDisk(sqlite3.OperationalError):
    sqlite_errorcode = sqlite3.SQLITE_IOERR


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Spool]]:
    made: list[Spool] = []

    def build(size_max: int = 64 << 20, sync_s: float = 0.01, kernel: str = KERNEL) -> Spool:
        made.append(Spool(tmp_path, size_max, sync_s, kernel))
        made[-1].open()
        return made[-1]

    yield build
    for spool in made:
        if spool.alive:
            spool.close()


def put(spool: Spool, number: int = METRICS, size: int = 100, samples: int = 5) -> Row:
    boot_id, sequence = spool.memory.allocate(number)
    row = Row(boot_id, number, sequence, 1, samples, random.Random(sequence).randbytes(size))
    spool.memory.put(row)
    return row


def wait(ask: Callable[[], object], what: str, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not ask():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def account(spool: Spool, name: str = "metrics"):
    found = spool.ledger.snapshot()[name]
    assert found.produced == found.durable + found.spooled + found.in_flight + sum(found.dropped.values())
    return found


def read(spool: Spool, boot_id: str, number: int = METRICS, after: int = 0) -> list[Row]:
    return asyncio.run(spool.read(boot_id, number, after, 10_000))


def test_rows_come_back_in_order_and_leave_only_up_to_the_watermark(opened) -> None:
    spool = opened()
    rows = [put(spool) for _ in range(20)]
    wait(lambda: account(spool).spooled == 20, "20 rows in the file")
    assert read(spool, rows[0].boot_id) == rows
    spool.memory.ack(rows[0].boot_id, METRICS, 7)
    put(spool)
    wait(lambda: account(spool).durable == 7, "7 durable")
    assert [row.sequence for row in read(spool, rows[0].boot_id)] == list(range(8, 22))
    assert [row.sequence for row in read(spool, rows[0].boot_id, after=15)] == list(range(16, 22))


def test_clean_close_goes_on_and_a_crash_begins_anew_with_the_loss_counted(opened, tmp_path: Path) -> None:
    first = opened()
    rows = [put(first) for _ in range(3)]
    assert first.close()
    second = opened()
    assert second.memory.boot_id == rows[0].boot_id
    fourth = put(second)
    assert fourth.sequence == 4
    wait(lambda: account(second).spooled == 4, "inherited and new")
    used = (tmp_path / spool_open.USED_FILE).read_bytes()
    assert second.close()
    with sqlite3.connect(tmp_path / spool_open.FILE) as db:  # as kill -9 leaves it: two more were made
        db.execute("UPDATE meta SET value='0' WHERE name='clean'")
    boot, _, events, samples = spool_open.parse_used(used.decode())
    line = spool_open.used_text(boot, {METRICS: 7, EVENTS: events + 1}, samples + 11)
    (tmp_path / spool_open.USED_FILE).write_bytes(line)
    third = opened()
    assert third.memory.boot_id != boot and third.writer.counters["unclean_starts"] == 1
    [gap] = third.memory.gaps(boot)
    assert gap[:6] == (boot, METRICS, 5, 6, "crash", 11)
    assert account(third).dropped == {"crash": 2}
    assert read(third, boot) == [*rows, fourth]


def test_a_reboot_begins_a_new_boot_id_and_keeps_the_old_rows(opened) -> None:
    first = opened()
    row = put(first)
    first.close()
    second = opened(kernel="99999999-0000-0000-0000-000000000000")
    assert second.memory.boot_id.startswith("99999999") and put(second).sequence == 1
    assert second.waiting_boots()[0] == row.boot_id
    assert read(second, row.boot_id) == [row]


def test_the_cap_drops_oldest_metrics_first_and_reports_the_exact_gap(opened) -> None:
    spool = opened(size_max=1 << 20)
    event = put(spool, EVENTS)
    for _ in range(600):
        put(spool, size=4000)
    wait(lambda: account(spool).in_flight == 0 and account(spool).dropped, "trimmed")
    assert spool.writer.used_bytes <= 1 << 20
    [gap] = spool.memory.gaps(event.boot_id)
    assert (gap.number, gap.first, gap.reason) == (METRICS, 1, "spool_full")
    kept = read(spool, event.boot_id)
    assert [row.sequence for row in kept] == list(range(gap.last + 1, 601))
    assert account(spool).dropped == {"spool_full": gap.last} and gap.samples == 5 * gap.last
    assert read(spool, event.boot_id, EVENTS) == [event], "events go last"


@pytest.mark.parametrize(("error", "state"), [(Full, "degraded(disk_full)"), (BadDisk, "degraded(io_error)")])
def test_a_disk_that_fails_degrades_to_memory_and_recovers_by_itself(
    opened, monkeypatch, error, state
) -> None:
    monkeypatch.setattr(spool_writer, "RETRY_S", 0.05)
    spool = opened()
    first = put(spool)
    wait(lambda: account(spool).spooled == 1, "written")

    def fail(_store: Store) -> None:
        raise error("injected")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "commit", fail)
        rows = [put(spool) for _ in range(10)]
        wait(lambda: spool.state == state, state)
        assert account(spool).spooled == 1 and account(spool).in_flight == 10
        assert [r.sequence for r in read(spool, first.boot_id, after=1)] == [r.sequence for r in rows], (
            "from memory"
        )
    wait(lambda: spool.state == "ok" and account(spool).spooled == 11, "recovered")
    assert read(spool, first.boot_id) == [first, *rows]


def test_memory_is_bounded_while_the_disk_is_full_and_events_go_last(opened, monkeypatch) -> None:
    monkeypatch.setattr("gpuvigil_agent.spool_memory.RING_BYTES", 10_000)
    spool = opened()
    monkeypatch.setattr(Store, "begin", lambda _store: (_ for _ in ()).throw(Full("injected")))
    event = put(spool, EVENTS)
    for _ in range(50):
        put(spool, size=1000)
    wait(lambda: account(spool).dropped.get("memory_full", 0) >= 40, "dropped")
    gaps = spool.memory.gaps(event.boot_id)
    assert sum(gap.last - gap.first + 1 for gap in gaps) == account(spool).dropped["memory_full"]
    assert all(gap.number == METRICS for gap in gaps) and account(spool, "events").in_flight == 1


def test_a_flipped_bit_is_a_gap_and_never_a_wrong_row(opened, tmp_path: Path) -> None:
    spool = opened()
    rows = [put(spool) for _ in range(5)]
    spool.close()
    with sqlite3.connect(tmp_path / spool_open.FILE) as db:
        key, payload = db.execute("SELECT key, payload FROM rows WHERE key & 255 = 3").fetchone()
        db.execute("UPDATE rows SET payload=? WHERE key=?", (bytes([payload[0] ^ 4]) + payload[1:], key))
    again = opened()
    assert [row.sequence for row in read(again, rows[0].boot_id)] == [1, 2, 4, 5]
    [gap] = again.memory.gaps(rows[0].boot_id)
    assert (gap.first, gap.last, gap.reason, gap.samples) == (3, 3, "corrupt", 5)
    assert account(again).dropped == {"corrupt": 1}


@pytest.mark.parametrize("damage", [b"not a database at all" * 100, os.urandom(20_000)])
def test_a_file_that_is_no_database_is_put_aside_and_a_new_generation_begins(
    opened, tmp_path: Path, damage: bytes
) -> None:
    first = opened()
    row = put(first)
    first.close()
    (tmp_path / spool_open.FILE).write_bytes(damage)
    second = opened()
    assert second.state == "ok" and second.writer.counters["quarantined_files"] == 1
    assert second.memory.boot_id != row.boot_id
    assert [p for p in tmp_path.iterdir() if ".corrupt-" in p.name]
    assert put(second).sequence == 1
    wait(lambda: account(second).spooled == 1, "written")


def test_a_refused_row_is_buried_once_and_counted(opened, tmp_path: Path) -> None:
    spool = opened()
    rows = [put(spool) for _ in range(3)]
    spool.memory.refuse(rows[1].boot_id, METRICS, 2, "bad_crc")
    put(spool)
    wait(lambda: account(spool).dropped == {"refused_bad_crc": 1}, "buried")
    assert [row.sequence for row in read(spool, rows[0].boot_id)] == [1, 3, 4]
    spool.close()
    with sqlite3.connect(tmp_path / spool_open.FILE) as db:
        assert db.execute("SELECT sequence, reason, payload FROM dead_letters").fetchall() == [
            (2, "bad_crc", rows[1].payload)
        ]


def test_two_spools_on_one_folder_are_refused(opened, tmp_path: Path) -> None:
    opened()
    with pytest.raises(SpoolError, match="another agent uses it"):
        Spool(tmp_path, 1 << 20, 1.0, KERNEL).open()
