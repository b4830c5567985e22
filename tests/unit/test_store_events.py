"""Events reach the brain once; after a restart what was judged is no news, and what was not is."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fake_snapshot import SECOND, Fleet

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.store_events import BOOTS_PER_NODE, EventQueue
from gpuvigil_detectors.rules import Rules
from gpuvigil_detectors.structural import Structural


def message(sequence: int, node: str = "n1", boot: str = "boot-1") -> frames.Event:
    return frames.Event(node, boot, sequence, sequence, "xid", "driver", "gpu:0", 79, "", {}, False)


def judge(queue: EventQueue) -> list[tuple[int, bool]]:
    events = [(event.time_ns, event.judged) for event in queue.take()]
    queue.write(queue.judged())
    return events


def test_an_event_is_handed_out_once(tmp_path):
    queue = EventQueue(tmp_path / "judged.sqlite")
    assert [queue.add(message(n)) for n in (1, 2, 1)] == [True, True, False]
    assert judge(queue) == [(1, False), (2, False)]
    assert not queue.add(message(2))
    assert judge(queue) == []


def test_after_a_restart_only_what_was_not_judged_is_news(tmp_path):
    queue = EventQueue(tmp_path / "judged.sqlite")
    queue.add(message(1))
    judge(queue)
    queue.add(message(2))
    queue.take()  # and here the process dies
    queue.close()
    after = EventQueue(tmp_path / "judged.sqlite")
    for n in (1, 2, 3):
        after.add(message(n))
    assert judge(after) == [(1, True), (2, False), (3, False)]


def test_the_boots_of_a_node_are_bounded_and_the_newest_stay(tmp_path):
    queue = EventQueue(tmp_path / "judged.sqlite")
    for n in range(BOOTS_PER_NODE + 5):
        queue.add(message(1, boot=f"boot-{n}"))
        judge(queue)
    assert not queue.add(message(1, boot=f"boot-{BOOTS_PER_NODE + 4}"))
    assert sum(len(boots) for boots in queue._seen._of.values()) == BOOTS_PER_NODE


def test_a_file_that_cannot_be_written_is_counted_and_stops_nobody(tmp_path):
    queue = EventQueue(tmp_path / "judged.sqlite")
    queue._file._db.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "judged.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    queue.add(message(1))
    assert judge(queue) == [(1, False)]
    assert queue.failures == 1
    other.execute("ROLLBACK")
    queue.add(message(2))
    judge(queue)
    assert (1 in queue._judged.get("n1", "boot-1"), queue.failures) == (True, 1)


def test_a_broken_file_is_set_aside(tmp_path):
    (tmp_path / "judged.sqlite").write_bytes(b"no database" * 500)
    queue = EventQueue(tmp_path / "judged.sqlite")
    queue.add(message(1))
    assert judge(queue) == [(1, False)]
    assert (tmp_path / "judged.broken").exists()


XIDS = st.lists(
    st.tuples(
        st.sampled_from(["xid", "gpu_returned", "boot"]),
        st.sampled_from([79, 31, 48, 119]),
        st.integers(1, 90),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(XIDS)
def test_rules_remember_after_a_restart_what_they_knew_before(story):
    """Events, returns and boots, judged as they came or again all at once: the same findings hold."""
    fleet, rules, told, boot = Fleet(), Rules(), [], 1
    for what, code, wait_s in story:
        if what == "boot":
            boot += 1
        elif what == "xid":
            told.append(fleet.event("n1", "xid", fleet.gpu("n1")[3:], code=code, boot_id=f"k{boot}.a"))
        else:
            told.append(fleet.event("n1", what, fleet.gpu("n1")[3:], boot_id=f"k{boot}.a"))
        fleet.node("n1", 1, boot_id=f"k{boot}.a")
        before = rules.tick(fleet.snapshot())
        fleet.now_ns += wait_s * SECOND
        before = rules.tick(fleet.snapshot())
    if not story:
        return
    for event in told:
        fleet._events.append(_judged(event))
    after = Rules().tick(fleet.snapshot())
    assert sorted(map(str, after)) == sorted(map(str, before))


def _judged(event):
    return replace(event, judged=True)


def test_a_loss_that_was_judged_before_waits_for_the_inventory(tmp_path):
    fleet = Fleet()
    fleet.node("n1", 1)
    fleet._events.append(_judged(fleet.event("n1", "gpu_lost", "gpu:GPU-n1-0", boot_id="b1")))
    del fleet._events[0]
    assert Structural().tick(fleet.snapshot()) == []


def test_a_restarted_agent_is_no_boot():
    fleet, rules = Fleet(), Rules()
    fleet.node("n1", 1, boot_id="kernel-1.aa")
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=48)
    assert rules.tick(fleet.advance())
    fleet.node("n1", boot_id="kernel-1.bb")
    assert rules.tick(fleet.advance())
    fleet.node("n1", boot_id="kernel-2.cc")
    assert [f for f in rules.tick(fleet.advance()) if f.rule == "xid_48"] == []
