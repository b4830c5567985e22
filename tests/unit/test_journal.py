"""The journal survives restarts, kill and corruption, and shows tampering."""

from __future__ import annotations

import sqlite3

import pytest
from unit.incident_help import SECOND, T0, Life, finding, gpu

from gpuvigil_collector.chain import GENESIS
from gpuvigil_collector.incidents import ranking
from gpuvigil_collector.journal import Journal


def make(directory, **settings):
    return Journal(directory, **({"entries_max": 1000, "keep_s": 1e9} | settings))


def lived(journal, incidents=3):
    """A life of some incidents, written down tick by tick; the last one stays open."""
    life = Life()
    for number in range(incidents):
        found = finding("ecc_uncorrectable", gpu("n1", number), at=number * 100)
        journal.record(life.tick(number * 100, found), ())
        if number < incidents - 1:
            journal.record(life.tick(number * 100 + 50), ())
    return life


def test_what_was_recorded_comes_back_equal_and_the_chain_holds(tmp_path):
    journal = make(tmp_path)
    life = lived(journal)
    journal.close()
    again = make(tmp_path)
    restored = {one.id: one for one in again.load(100)}
    assert restored == {**life.tracker.resolved, **life.tracker.open}
    assert again.verify() is None and again.head != GENESIS and again.fault == ""
    assert [entry["what"] for entry in again.entries("i1")] == ["opened", "resolved"]


def test_an_open_incident_is_restored_and_not_duplicated(tmp_path):
    journal = make(tmp_path)
    first = Life()
    found = finding("gpu_lost", gpu("n1", 4))
    journal.record(first.tick(0, found), ())  # and then the process is killed: nothing is closed
    second = Life()
    second.tracker.restore(make(tmp_path).load(100), T0 + 50 * SECOND)
    assert second.tracker.open == first.tracker.open, "restored as it was: last seen stays the truth"
    assert second.tick(60, finding("gpu_lost", gpu("n1", 4), at=60)) == []
    assert list(second.tracker.open) == ["i1"]
    second.hold(61, 169)
    assert list(second.tracker.open) == ["i1"], "detectors have two minutes to see it again"
    second.hold(169, 172)
    assert second.open == [], "a restored incident that is never seen again resolves"


def test_a_changed_entry_is_found(tmp_path):
    journal = make(tmp_path)
    lived(journal)
    journal.close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        database.execute("UPDATE journal SET detail = 'nothing happened' WHERE sequence = 2")
    assert make(tmp_path).verify() == 2
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        database.execute("DELETE FROM journal WHERE sequence = 2")
    assert make(tmp_path).verify() == 3


@pytest.mark.parametrize("damage", ["garbage", "half", "zeroes", "other_schema"])
def test_a_corrupt_file_is_put_aside_loudly_and_work_goes_on(tmp_path, damage):
    journal = make(tmp_path)
    lived(journal, 20)
    journal.close()
    path = tmp_path / "journal.sqlite"
    whole = path.read_bytes()
    if damage == "other_schema":
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
    else:
        halves = {"garbage": b"<html>" * 5000, "half": whole[: len(whole) // 2 + 100]}
        path.write_bytes(halves.get(damage, whole[:4096] + bytes(4096) + whole[8192:]))
    again = make(tmp_path)
    assert "a new one began" in again.fault
    assert len(list(tmp_path.glob("journal.broken-*"))) == 1
    lived(again)
    assert again.verify() is None and len(again.load(100)) == 3


def test_a_locked_file_costs_durability_but_not_the_collector(tmp_path):
    make(tmp_path).close()
    with sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        journal = make(tmp_path)
        assert "memory only" in journal.fault
        lived(journal)
        assert len(journal.entries("i1")) == 2
        other.execute("ROLLBACK")


def test_a_directory_that_cannot_be_made_is_loud_too(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    journal = make(tmp_path / "file" / "below")
    assert "memory only" in journal.fault and journal.entries("x") == []


def test_a_write_that_fails_waits_and_is_made_up_for(tmp_path):
    journal = make(tmp_path)
    with sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        journal.record(Life().tick(0, finding("gpu_lost", gpu("n1"))), ())
        assert journal.failures == 1 and "1 changes wait" in journal.fault
        other.execute("ROLLBACK")
    journal.record([], ())
    assert journal.fault == "" and journal.written == 1 and len(journal.entries("i1")) == 1


def test_retention_is_bounded_and_the_rest_of_the_chain_still_verifies(tmp_path):
    journal = make(tmp_path, entries_max=100)
    lived(journal, 1200)
    (rows,) = journal._database.execute("SELECT count(*) FROM journal").fetchone()
    assert rows <= 100 + 1000, "pruned once a thousand entries"
    assert journal.verify() is None
    assert len(journal.load(10_000)) < 1200


def test_the_cause_table_knows_only_known_classes_and_says_so():
    with pytest.raises(ValueError, match="gpu_vanished"):
        ranking.Causes({"order": ["gpu_vanished"], "hold": {}, "explains": [], "widen": []})
