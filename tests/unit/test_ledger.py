"""The ledger file: what was committed is what is loaded, over siblings and many boots."""

from __future__ import annotations

from gpuvigil_collector.ingest.intervals import IntervalSet
from gpuvigil_collector.ingest.ledger import BOOTS_PER_NODE, Delivery, Ledger, LedgerFile, row_of
from gpuvigil_collector.ingest.node_locks import NodeLocks

KEY = ("n1", "boot-1", "metrics")


def delivery(*intervals: tuple[int, int], duplicates: int = 0, **refused: int) -> Delivery:
    return Delivery(
        received=IntervalSet(intervals), duplicates=duplicates, gap_sequences=2, refused=dict(refused)
    )


def test_a_committed_delivery_comes_back_whole(tmp_path):
    file = LedgerFile(tmp_path / "ledger.sqlite")
    file.commit([row_of(KEY, delivery((1, 5), (9, 9), duplicates=3, bad_crc=1), 1)], last_segment=4)
    file.close()
    file = LedgerFile(tmp_path / "ledger.sqlite")
    assert file.last_segment() == 4
    found = file.load("n1")[KEY]
    assert list(found.received) == list(found.durable) == [(1, 5), (9, 9)]
    assert (found.duplicates, found.gap_sequences, found.refused) == (3, 2, {"bad_crc": 1})
    assert file.load("n2") == {}


def test_a_claim_unites_what_siblings_took_before(tmp_path):
    files = [LedgerFile(tmp_path / f"ledger-{n}.sqlite") for n in range(2)]
    files[0].commit([row_of(KEY, delivery((1, 10)), 1)], 1)
    files[1].commit([row_of(KEY, delivery((1, 10), (11, 20), duplicates=1), 2)], 1)
    ledger = Ledger(files)
    ledger.claim("n1")
    assert ledger.delivery(KEY).durable.watermark == 20
    assert ledger.delivery(KEY).duplicates == 1
    assert [key for key, _ in ledger.changes()] == [KEY]
    ledger.release("n1")
    assert ledger.nodes == frozenset()


def test_old_boots_are_pruned_and_new_ones_stay(tmp_path):
    file = LedgerFile(tmp_path / "ledger.sqlite")
    for boot in range(50):
        file.commit([row_of(("n1", f"boot-{boot}", "metrics"), delivery((1, 1)), boot)], boot)
    file.commit([row_of(("n2", "boot-0", "metrics"), delivery((1, 1)), 0)], 51)
    file.prune()
    assert {boot for _, boot, _ in file.load("n1")} == {f"boot-{n}" for n in range(50 - BOOTS_PER_NODE, 50)}
    assert len(file.load("n2")) == 1


def test_a_nodes_lock_needs_all_siblings_up(tmp_path):
    locks = NodeLocks(tmp_path / "nodes.lock", index=0, workers=2)
    assert not locks.take("n1")
    alone = NodeLocks(tmp_path / "other.lock", index=0, workers=1)
    assert alone.take("n1")
    assert alone.take("n1")
    alone.release("n1")
    assert alone.take("n1")
