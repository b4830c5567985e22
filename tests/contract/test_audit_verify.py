"""`gpuvigil audit verify`: over the API and over the files, with the place where the journal was changed."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from unit.brain_help import Rig
from unit.test_anchor import forge, lived

from gpuvigil_cli.__main__ import main
from gpuvigil_collector.web import audit


def verified(capsys, *arguments):
    """Exit status, and what was printed."""
    status = main(["audit", "verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    lived(folder)
    (folder / "anchor").rename(folder / "journal.anchor")
    return folder


def change(state, sql, *, forged=False):
    with sqlite3.connect(state / "journal.sqlite") as database:
        database.execute(sql)
        if forged:
            forge(database)
    database.close()


def test_r15_an_honest_journal_is_whole(state, capsys):
    status, told = verified(capsys, "--state", state)
    assert status == 0 and "24 entries, 1 to 24, and fits" in told
    status, told = verified(capsys, "--state", state, "--json")
    found = json.loads(told)
    assert (status, found["wrong"], found["newest"], found["anchored"] > 10) == (0, None, 24, True)


@pytest.mark.parametrize(
    ("sql", "forged", "place"),
    [
        ("UPDATE journal SET detail = 'nothing was done' WHERE sequence = 9", False, "entry 9 "),
        (
            "UPDATE journal SET detail = 'nothing was done' WHERE sequence = 9",
            True,
            "the chain was rewritten",
        ),
        ("DELETE FROM journal WHERE sequence = 11", False, "entry 12 ('action_done') does not follow"),
        ("DELETE FROM journal WHERE sequence > 20", False, "are gone"),
        ("DELETE FROM journal WHERE sequence < 6", False, "more than retention explains"),
    ],
)
def test_r15_audit_verify_says_where_it_was_tampered_with(state, capsys, sql, forged, place):
    change(state, sql, forged=forged)
    status, told = verified(capsys, "--state", state)
    assert status == 1 and told.startswith("TAMPERED at entry") and place in told, told


def test_r15_the_anchor_that_was_kept_elsewhere_finds_a_forged_pair(state, tmp_path, capsys):
    """Who can write the state directory rewrites journal and anchor; the copy elsewhere is not his."""
    kept = tmp_path / "elsewhere"
    shutil.copy(state / "journal.anchor", kept)
    change(state, "UPDATE journal SET what = 'nothing' WHERE sequence = 9", forged=True)
    (state / "journal.anchor").unlink()
    status, told = verified(capsys, "--state", state)
    assert status == 0 and "NO ANCHOR" in told, "what cannot be known is said"
    status, told = verified(capsys, "--state", state, "--anchor", kept)
    assert status == 1 and "the chain was rewritten" in told
    (state / "journal.sqlite").unlink()
    assert verified(capsys, "--state", state, "--anchor", kept)[0] == 1


def test_what_cannot_be_read_is_a_clear_error(state, tmp_path, capsys):
    for arguments, word in (
        (("--state", tmp_path / "none"), "no journal in"),
        (("--state", state, "--anchor", tmp_path / "none"), "--anchor: no file"),
        (("--state", state, "--anchor", state / "journal.sqlite"), "expected lines of a collector's anchor"),
        (("--state", state, "--config", tmp_path / "none"), "none"),
    ):
        status, told = verified(capsys, *arguments)
        assert status == 2 and word in told and "Traceback" not in told, told
    (state / "journal.sqlite").write_bytes(b"<html>" * 2000)
    status, told = verified(capsys, "--state", state)
    assert status == 1 and "cannot be read" in told


def test_r15_the_running_collector_is_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "_KEPT_S", 0.0)
    rig = Rig(tmp_path)
    rig.tick()
    incident = rig.repair.desk
    incident.hands.tell(rig.fleet.now_ns, "noted", "one", "")
    incident.hands.tell(rig.fleet.now_ns, "noted", "two", "")
    rig.tick()
    with rig.serve() as url:
        status, told = verified(capsys, "--url", url)
        assert status == 0 and "2 entries" in told, told
        change(tmp_path, "UPDATE journal SET detail = 'three' WHERE sequence = 2")
        status, told = verified(capsys, "--url", url)
        assert status == 1 and "entry 2 ('noted') is not what was written" in told, told
