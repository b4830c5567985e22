"""R5: a store of actions that is missing, old, malformed, locked or full gives no past, and says why."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace

import pytest
from unit.action_help import World, action

from gpuvigil_collector.action_rows import KEEP_NS
from gpuvigil_collector.action_store import ActionStore


def lived(directory):
    """A store with one hold that was done, closed again."""
    store = ActionStore(directory)
    assert store.fault == "" and store.past(time.time_ns()) == ()
    assert store.write(action("a1", state="done", domain="rack1"))
    assert store.put_case("c1", '{"step": 1}')
    store.close()
    return directory / "actions.sqlite"


def refuses(directory):
    """A store that lets nothing happen: no past for the kernel, nothing begun by the executor, a fault."""
    world = World(directory)
    assert world.store.past(time.time_ns()) is None
    world.executor.resume()
    submitted = world.executor.submit(action("new"))
    world.step(3)
    assert submitted.state == "failed" and "not begun" in submitted.outcome
    assert world.fake.applied == []
    assert [fault for fault in world.executor.faults() if fault]
    world.store.close()
    return world.store.fault


def test_what_was_written_comes_back_equal(tmp_path):
    lived(tmp_path)
    store = ActionStore(tmp_path)
    (past,) = store.past(time.time_ns())
    assert (past.id, past.kind, past.node, past.domain, past.case, past.open) == (
        "a1",
        "hold",
        "n1",
        "rack1",
        "c1",
        True,
    )
    assert store.cases() == {"c1": '{"step": 1}'} and store.fault == ""
    assert store.get("a1").state == "done" and store.get("a2") is None
    assert store.forget_case("c1") and store.cases() == {}


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        ("intended", 1),
        ("issued", 1),
        ("ambiguous", 1),
        ("done", 1),
        ("failed", 0),
        ("denied", 0),
        ("would", 0),
    ],
)
def test_what_may_have_happened_is_counted(tmp_path, state, counts):
    store = ActionStore(tmp_path)
    store.write(action("a1", state=state, kind="reboot"))
    assert len(store.past(time.time_ns())) == counts
    store.write(action("a2", state=state, kind="notify"))
    assert len(store.past(time.time_ns())) == counts, "what changes nothing is in no budget"


def test_a_hold_is_open_until_it_is_released_however_old_it_is(tmp_path):
    store = ActionStore(tmp_path)
    long_ago = time.time_ns() - 2 * KEEP_NS
    store.write(action("old", state="done", decided_ns=long_ago))
    store.write(action("boot", state="done", kind="reboot", decided_ns=long_ago))
    assert [(past.id, past.open) for past in store.past(time.time_ns())] == [("old", True)]
    store.write(action("r1", state="failed", kind="release"))
    assert store.past(time.time_ns())[0].open
    store.write(action("r2", state="done", kind="release"))
    assert [past.id for past in store.past(time.time_ns())] == ["r2"]
    store.write(action("again", state="done"))
    assert store.no_longer_held("again")
    assert not [past for past in store.past(time.time_ns()) if past.open]


def test_what_is_past_retention_is_forgotten_and_a_hold_is_not(tmp_path):
    store = ActionStore(tmp_path)
    long_ago = time.time_ns() - 2 * KEEP_NS
    store.write(action("held", state="done", decided_ns=long_ago))
    store.write(action("boot", state="done", kind="reboot", node="n2", decided_ns=long_ago))
    for number in range(200):
        store.write(action(f"x{number}", state="failed"))
    assert store.get("boot") is None and store.get("held") is not None


@pytest.mark.parametrize("damage", ["garbage", "zeroes", "empty", "old_schema", "other_schema", "gone"])
def test_r5_a_store_that_is_lost_stops_every_action_also_after_a_restart(tmp_path, damage):
    path = lived(tmp_path)
    whole = path.read_bytes()
    if damage.endswith("schema"):
        with sqlite3.connect(path) as database:
            database.execute(f"PRAGMA user_version = {0 if damage == 'old_schema' else 99}")
    elif damage == "gone":
        path.unlink()
    else:
        bad = {"garbage": b"<html>" * 9000, "zeroes": whole[:4096] + bytes(4096) + whole[8192:], "empty": b""}
        path.write_bytes(bad[damage])
    said = refuses(tmp_path)
    assert "nothing is done" in said and "actions.mark" in said
    assert damage == "gone" or "is kept as actions.broken-" in said
    assert "is gone" in refuses(tmp_path), "a restart makes no empty past of a lost one"
    (tmp_path / "actions.mark").unlink()  # a person has looked at the nodes
    store = ActionStore(tmp_path)
    assert store.past(time.time_ns()) == () and store.fault == ""


def test_r5_a_record_that_cannot_be_read_stops_every_action(tmp_path):
    path = lived(tmp_path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE actions SET body = replace(body, '\"hold\"', '\"tickle\"')")
    store = ActionStore(tmp_path)
    assert store.past(time.time_ns()) is None
    assert "cannot be read" in store.fault and "tickle" in store.fault
    world = World(tmp_path, store=store)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE actions SET state = 'issued'")
    assert not world.executor.resume()
    assert world.executor.submit(action("new")).state == "failed"


def test_r5_a_locked_store_stops_every_action_until_it_is_free(tmp_path):
    path = lived(tmp_path)
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "locked" in refuses(tmp_path)
        store = ActionStore(tmp_path)
        assert "locked" in store.fault
    store._tried = float("-inf")  # five seconds later
    assert len(store.past(time.time_ns())) == 1 and store.fault == ""


def test_r5_a_full_disk_stops_what_was_not_begun(tmp_path):
    world = World(tmp_path)
    world.executor.resume()
    pages = world.store._database.execute("PRAGMA page_count").fetchone()[0]
    world.store._database.execute(f"PRAGMA max_page_count = {pages}")
    world.store._database.execute("INSERT INTO cases VALUES ('fill', '')")
    world.store._database.rollback()
    failed = [world.executor.submit(action(f"a{n}", reason="x" * 400)) for n in range(60)][-1]
    assert failed.state == "failed" and "full" in failed.outcome and "full" in world.executor.faults()[0]
    begun = world.store.unended()
    world.step(60)
    assert len(world.fake.applied) <= len(begun) < 60


def test_r5_an_effect_whose_issue_cannot_be_written_is_not_had(tmp_path):
    world = World(tmp_path)
    world.executor.resume()
    world.executor.submit(action("a1"))
    with sqlite3.connect(tmp_path / "actions.sqlite") as other:
        other.execute("BEGIN IMMEDIATE")
        world.step()
        assert world.fake.applied == []
        assert any("wait for a disk" in fault for fault in world.executor.faults())
    world.step(2)
    assert world.state() == "failed" and world.fake.applied == []
    assert not world.executor.faults()


def test_transitions_wait_for_the_journal_over_a_restart(tmp_path):
    store = ActionStore(tmp_path)
    for state in ("intended", "issued", "done"):
        store.write(action("a1", state=state))
    store.close()
    store = ActionStore(tmp_path)
    told = store.untold()
    assert [one.action.state for one in told] == ["intended", "issued", "done"]
    assert store.told(told[1].sequence)
    assert [one.action.state for one in store.untold()] == ["done"]
    store.told(told[2].sequence)
    store.write(replace(action("a2"), state="denied"))
    assert store.untold()[0].sequence > told[2].sequence, "a number is given once"
