"""Random damage to the spool's file: it always opens, and never gives back a row that was not written."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from pathlib import Path

import pytest

from gpuvigil_agent import spool as spool_module
from gpuvigil_agent import spool_open
from gpuvigil_agent.ledger import EVENTS, METRICS
from gpuvigil_agent.spool import Spool
from gpuvigil_agent.spool_store import Row, Store

KERNEL = "11111111-2222-3333-4444-555555555555"
ROWS = 60


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[tuple[int, int], Row]]:
    """One clean spool as bytes, and what is in it."""
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, 64 << 20, 0.0, KERNEL)
    spool.open()
    rows = {}
    for index in range(ROWS):
        number = EVENTS if index % 5 == 0 else METRICS
        boot_id, sequence = spool.memory.allocate(number)
        row = Row(boot_id, number, sequence, 1, 3, random.Random(index).randbytes(50 + 40 * index))
        rows[number, sequence] = row
        spool.memory.put(row)
    spool.memory.put_dictionary(boot_id, 1, b"dictionary")
    assert spool.close()
    return (folder / spool_open.FILE).read_bytes(), rows


def damage(data: bytes, chance: random.Random) -> bytes:
    """Flip bits, zero a page, overwrite bytes, or cut the end."""
    broken = bytearray(data)
    kind = chance.choice(["bits", "bytes", "page", "cut"])
    if kind == "cut":
        return bytes(broken[: chance.randrange(len(broken))])
    if kind == "page":
        at = chance.randrange(len(broken) // 4096) * 4096
        broken[at : at + 4096] = bytes(4096)
        return bytes(broken)
    for _ in range(chance.randint(1, 64)):
        at = chance.randrange(len(broken))
        broken[at] = broken[at] ^ (1 << chance.randrange(8)) if kind == "bits" else chance.randrange(256)
    return bytes(broken)


@pytest.mark.parametrize("block", range(4))
def test_damage_is_survived_and_no_wrong_row_comes_back(written, tmp_path: Path, block: int) -> None:
    data, rows = written
    sound = lost = 0
    for trial in range(25):
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / spool_open.FILE).write_bytes(damage(data, random.Random(block * 1000 + trial)))
        spool = Spool(folder, 64 << 20, 0.0, KERNEL)
        spool.open()
        boot_id = next(iter(rows.values())).boot_id
        for number in (METRICS, EVENTS):
            for row in asyncio.run(spool.read(boot_id, number, 0, 1000)):
                assert row.payload == rows[number, row.sequence].payload, "a wrong row was given back"
                sound += 1
        new_boot, sequence = spool.memory.allocate(METRICS)
        assert new_boot != boot_id or sequence > max(s for n, s in rows if n == METRICS), "a sequence twice"
        spool.memory.put(Row(new_boot, METRICS, sequence, 1, 1, b"after"))
        assert spool.close(), "the thread is alive and ends"
        account = spool.ledger.snapshot()["metrics"]
        parts = account.durable + account.spooled + account.in_flight + sum(account.dropped.values())
        assert account.produced == parts
        lost += sum(account.dropped.values())
    assert sound > ROWS, f"{sound} rows read back, {lost} lost"


def test_a_sync_that_hangs_is_said_while_it_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen disk raises nothing: only the time that a transaction takes tells."""
    monkeypatch.setattr(spool_module, "SLOW_S", 0.2)
    released, commit = threading.Event(), Store.commit
    made = Spool(tmp_path, 64 << 20, 0.01, KERNEL)
    made.open()
    monkeypatch.setattr(Store, "commit", lambda self: (released.wait(30), commit(self))[1])
    boot_id, sequence = made.memory.allocate(METRICS)
    made.memory.put(Row(boot_id, METRICS, sequence, 1, 1, b"x"))
    deadline = time.monotonic() + 10
    while made.state != "degraded(slow_disk)":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    released.set()
    while made.state != "ok":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert made.close()
