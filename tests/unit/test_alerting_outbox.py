"""The outbox against a replica that may lose answers, die and forget: what it holds is what is open."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuvigil_collector.alerting.alert import Alert
from gpuvigil_collector.alerting.outbox import ENDING_MAX, Outbox, Saved

SECOND = 10**9
RESEND = 60 * SECOND


def alert(name, ends_ns=0):
    return Alert(labels=(("alertname", name),), annotations=(), starts_ns=1, ends_ns=ends_ns)


def keyed(names):
    return {alert(name).labels: alert(name) for name in names}


def want(outbox, names, now_ns, sure=True, ended=()):
    outbox.want(keyed(names), now_ns, lambda: {alert(name).labels: now_ns for name in ended}, sure=sure)


def names_of(batch):
    return [(one.labels[0][1], bool(one.ends_ns)) for one in batch]


def test_open_alerts_are_sent_at_once_and_again_when_due():
    outbox = Outbox(resend_ns=RESEND)
    want(outbox, "ab", 1)
    batch = outbox.batch(1)
    assert names_of(batch) == [("a", False), ("b", False)]
    assert outbox.batch(1) == batch, "not taken: due still"
    outbox.taken(batch, 1)
    assert outbox.batch(RESEND) == [] and len(outbox.batch(1 + RESEND)) == 2


def test_an_end_is_sent_until_it_is_taken_and_never_after():
    outbox = Outbox(resend_ns=RESEND)
    want(outbox, "a", 1)
    outbox.taken(outbox.batch(1), 1)
    want(outbox, "", 5)
    batch = outbox.batch(5)
    assert names_of(batch) == [("a", True)] and outbox.batch(9) == batch
    outbox.taken(batch, 9)
    want(outbox, "", 10)
    assert outbox.batch(10 * RESEND) == [] and outbox.waiting == 0


def test_an_end_that_was_never_begun_is_not_sent():
    outbox = Outbox(resend_ns=RESEND)
    want(outbox, "a", 1)
    want(outbox, "", 2)
    assert outbox.batch(2) == []


def test_an_attempt_whose_answer_was_lost_is_ended_too():
    outbox = Outbox(resend_ns=RESEND)
    want(outbox, "a", 1)
    outbox.batch(1)
    want(outbox, "", 2)
    assert names_of(outbox.batch(2)) == [("a", True)]


def test_open_again_before_its_end_was_taken_never_ended():
    outbox = Outbox(resend_ns=RESEND)
    want(outbox, "a", 1)
    outbox.taken(outbox.batch(1), 1)
    want(outbox, "", 2)
    ending = outbox.batch(2)
    want(outbox, "a", 3)
    assert names_of(outbox.batch(3)) == [("a", False)]
    outbox.taken(ending, 3)
    assert outbox.ending == {}


def test_after_a_start_only_what_is_known_to_have_ended_ends():
    outbox = Outbox(resend_ns=RESEND)
    outbox.restore(Saved(version=1, told=[alert("a"), alert("b")], ending=[]))
    want(outbox, "", 5, sure=False, ended="b")
    assert names_of(outbox.batch(5)) == [("b", True)]
    want(outbox, "", 6, sure=True)
    assert names_of(outbox.batch(6)) == [("b", True), ("a", True)]


def test_ends_have_a_bound_and_what_it_drops_is_counted():
    outbox = Outbox(resend_ns=RESEND)
    names = [f"n{number}" for number in range(ENDING_MAX + 7)]
    want(outbox, names, 1)
    while batch := outbox.batch(1):
        outbox.taken(batch, 1)
    want(outbox, "", 2)
    assert (len(outbox.ending), outbox.dropped) == (ENDING_MAX, 7)


STEPS = st.lists(
    st.tuples(
        st.sets(st.sampled_from("abcd")), st.sampled_from(["ok", "lost answer", "dead", "restart", "forgot"])
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_whatever_happens_the_replica_ends_with_what_is_open(steps):
    """A replica that takes batches, or takes them and loses the answer, or is dead, or forgets; we restart.

    Resolves are counted at the replica: one for each time an alert was open there and ended.
    """
    outbox, holds, now_ns, false_ends = Outbox(resend_ns=RESEND), set(), 1, 0
    for names, fate in [*steps, (steps[-1][0] if steps else set(), "ok")]:
        now_ns += SECOND
        if fate == "restart":
            saved = msgspec.json.decode(msgspec.json.encode(outbox.save()), type=Saved)
            outbox = Outbox(resend_ns=RESEND)
            outbox.restore(saved)
        if fate == "forgot":
            holds.clear()
            outbox.all_due()
        want(outbox, names, now_ns)
        for _ in range(10):
            batch = outbox.batch(now_ns)
            if not batch or fate == "dead":
                break
            for one in batch:
                key = one.labels[0][1]
                false_ends += bool(one.ends_ns) and key in names
                holds.discard(key) if one.ends_ns else holds.add(key)
            if fate == "lost answer":
                break
            outbox.taken(batch, now_ns)
        assert false_ends == 0, "nothing that is open is ever resolved"
    assert holds == names
    assert outbox.waiting == 0 and outbox.ending == {}
