"""R15: a journal that was changed, cut off or reordered is found by its anchor, hashes forged or not."""

from __future__ import annotations

import os
import shutil
import sqlite3

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpuvigil_collector import anchor
from gpuvigil_collector.anchor import Anchor
from gpuvigil_collector.chain import GENESIS, entry_hash
from gpuvigil_collector.journal import Journal, Note

SECOND = 1_000_000_000
T0 = 1_800_000_000 * SECOND


def make(directory, entries_max=1000, keep_s=1e9):
    journal = Journal(directory, entries_max=entries_max, keep_s=keep_s)
    journal._database.execute("PRAGMA synchronous = OFF")  # thousands of entries; no crash is tested here
    return journal


def notes(journal, first, count, *, apart_s=30.0):
    for number in range(first, first + count):
        at = T0 + int(number * apart_s * SECOND)
        journal.note(
            [Note(time_ns=at, what="action_done", detail=f"number {number}", incident=f"i{number % 3}")]
        )
        journal.record([], ())
        yield at


def lived(directory, count=24, **settings):
    """A journal of some entries, anchored at its birth, each minute and at its end."""
    journal, kept = make(directory, **settings), Anchor(directory / "anchor")
    kept.export(journal.anchored(T0 - 60 * SECOND))
    for at in notes(journal, 0, count):
        if kept.due(at):
            kept.export(journal.anchored(at))
    kept.export(journal.anchored(at))
    journal.close()
    return directory / "anchor"


def found(directory, **settings):
    journal = make(directory, **settings)
    try:
        return journal.verify(anchor.read(directory / "anchor"))
    finally:
        journal.close()


def test_an_honest_life_fits_also_with_newer_entries_and_torn_lines(tmp_path):
    path = lived(tmp_path)
    assert found(tmp_path) is None
    heads = anchor.read(path)
    assert len(heads) >= 12 and heads[0].hash == GENESIS
    with path.open("a") as file:
        file.write("1800000 12 abc")  # a crash in the middle of a line
    journal = make(tmp_path)
    list(notes(journal, 24, 3))
    Anchor(path).export(journal.anchored(T0 + 4000 * SECOND))
    assert len(anchor.read(path)) == len(heads) + 1
    assert journal.verify(anchor.read(path)) is None
    assert [entry["detail"] for entry in journal.entries("i1")][:2] == ["number 1", "number 4"]


@pytest.mark.parametrize("settings", [{"entries_max": 900}, {"keep_s": 4000.0}])
def test_what_retention_forgets_is_no_tampering(tmp_path, settings):
    journal, kept = make(tmp_path, **settings), Anchor(tmp_path / "anchor")
    kept.export(journal.anchored(T0 - 60 * SECOND))
    for at in notes(journal, 0, 2100, apart_s=4):
        if kept.due(at):
            kept.export(journal.anchored(at))
    assert anchor.read(tmp_path / "anchor")[-1].oldest > 500, "it has forgotten some"
    assert journal.verify(anchor.read(tmp_path / "anchor")) is None
    journal._database.execute(
        "DELETE FROM journal WHERE sequence <= (SELECT min(sequence) + 200 FROM journal)"
    )
    assert journal.verify(anchor.read(tmp_path / "anchor")) is not None, "more than retention explains"
    journal.close()


def forge(database):
    """Make the hashes of all rows fit again, as whoever can write the file can."""
    rows = database.execute("SELECT * FROM journal ORDER BY sequence").fetchall()
    previous = rows[0][5] if rows else GENESIS
    for *entry, _, _ in rows:
        digest = entry_hash(previous, tuple(entry))
        database.execute(
            "UPDATE journal SET previous = ?, hash = ? WHERE sequence = ?", (previous, digest, entry[0])
        )
        previous = digest


CHANGES = ("time_ns", "incident", "what", "detail", "previous", "hash")


@st.composite
def tampering(draw):
    kind = draw(st.sampled_from(["change", "delete", "cut", "swap", "insert", "renumber", "behead", "empty"]))
    return (
        kind,
        draw(st.integers(1, 24)),
        draw(st.integers(1, 24)),
        draw(st.sampled_from(CHANGES)),
        draw(st.booleans()),
    )


def tamper(database, kind, one, two, column):
    if kind == "change":
        database.execute(
            f"UPDATE journal SET {column} = CASE WHEN typeof({column}) = 'integer' THEN {column} + 1 "
            f"ELSE 'x' || {column} END WHERE sequence = ?", (one,)
        )  # fmt: skip
    elif kind == "delete":
        database.execute("DELETE FROM journal WHERE sequence = ?", (one,))
    elif kind == "cut":
        database.execute("DELETE FROM journal WHERE sequence >= ?", (one,))
    elif kind == "behead":
        database.execute("DELETE FROM journal WHERE sequence <= ?", (one,))
    elif kind == "empty":
        database.execute("DELETE FROM journal")
    elif kind == "swap":
        two = two if two != one else one % 24 + 1
        for old, new in ((one, -1), (two, one), (-1, two)):
            database.execute("UPDATE journal SET sequence = ? WHERE sequence = ?", (new, old))
    elif kind == "insert":
        database.execute(
            "INSERT INTO journal SELECT ?, time_ns, incident, what, 'new', previous, hash FROM journal "
            "WHERE sequence = ?",
            (-one + 1, two),
        )
    else:
        database.execute("UPDATE journal SET sequence = -sequence")
        database.execute("UPDATE journal SET sequence = 1 - sequence")


def rows_of(database):
    return database.execute("SELECT * FROM journal ORDER BY sequence").fetchall()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("original")
    lived(directory)
    with sqlite3.connect(directory / "journal.sqlite") as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA synchronous = OFF")
    return directory


@settings(max_examples=int(os.environ.get("GPUVIGIL_EXAMPLES", "200")), deadline=None)
@given(how=tampering(), more=st.integers(0, 3))
def test_r15_tampering_is_found_by_the_anchor(tmp_path_factory, original, how, more):
    """Rows changed, deleted, cut off, swapped, inserted, renumbered; hashes forged; life going on after."""
    directory = tmp_path_factory.mktemp("tampered")
    shutil.copytree(original, directory, dirs_exist_ok=True)
    *change, forged = how
    with sqlite3.connect(directory / "journal.sqlite") as database:
        database.execute("PRAGMA synchronous = OFF")
        tamper(database, *change)
        if forged:
            forge(database)
        assume(
            rows_of(database) != rows_of(sqlite3.connect(original / "journal.sqlite"))
        )  # a forged hash undone
    journal = make(directory)
    list(notes(journal, 30, more))
    wrong = journal.verify(anchor.read(directory / "anchor"))
    journal.close()
    assert wrong is not None, how


def test_r15_a_journal_that_was_replaced_is_found(tmp_path):
    lived(tmp_path)
    (tmp_path / "journal.sqlite").unlink()
    assert found(tmp_path) == 1 or found(tmp_path) is not None
    (tmp_path / "journal.sqlite").write_bytes(b"<html>" * 2000)
    assert found(tmp_path) is not None


def test_an_anchor_that_cannot_be_written_is_told_and_tried_again(tmp_path):
    (tmp_path / "file").write_text("")
    kept = Anchor(tmp_path / "file" / "anchor")
    head = anchor.Head(time_ns=T0, sequence=1, hash="0" * 64, oldest=1)
    kept.export(head)
    assert "cannot be written" in kept.fault and kept.due(T0 + SECOND)
    (tmp_path / "file").unlink()
    kept.export(head)
    assert kept.fault == "" and not kept.due(T0 + SECOND) and kept.due(T0 + 60 * SECOND) and kept.due(T0 - 1)
