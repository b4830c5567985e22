"""Silences of a real Alertmanager: what it silences and what the kernel is told are the same."""

from __future__ import annotations

import itertools
import json
import random
import time

import pytest
from integration import stack
from integration.alert_stack import Brain, Replica, alerting, incident, webhook

from gpuvigil_collector.alerting.alert import labels_of
from gpuvigil_collector.alerting.client import Alertmanager
from gpuvigil_collector.alerting.settings import AlertingConfig
from gpuvigil_collector.alerting.silences import Cover, read_rows

pytestmark = [pytest.mark.needs_alertmanager, pytest.mark.timeout(180)]
IS, REGEX, NOT, NOT_REGEX = (False, True), (True, True), (False, False), (True, False)


@pytest.fixture
def hook():
    with webhook() as made:
        yield made


@pytest.fixture
def replica(tmp_path, hook):
    made = Replica(tmp_path, hook)
    with made.run():
        yield made


def test_a_silenced_node_is_in_maintenance_and_alerts_nobody(tmp_path, hook, replica):
    brain, one, other = Brain(), incident("n1"), incident("n2")
    id_ = replica.silence(("node", "n1", *IS))
    brain.publish(nodes=("n1", "n2"))
    with alerting(tmp_path / "a", brain, replica.url) as made:
        reason = "silenced in Alertmanager by ann: swap NIC"
        stack.wait_for(lambda: made.read(time.time_ns()).nodes == {"n1": reason}, 20, "the silence read")
        brain.publish(one, other)
        stack.wait_for(lambda: hook.alerts("firing"), 20, "the other node's alert")
        silences = made.read(time.time_ns())
        assert (dict(silences.nodes), dict(silences.incidents)) == ({"n1": reason}, {one.id: reason})
        assert silences.fault == ""
        time.sleep(3)
        assert {alert["labels"]["node"] for alert in hook.alerts("firing")} == {"n2"}
        replica.unsilence(id_)
        stack.wait_for(lambda: not made.read(time.time_ns()).nodes, 20, "the end of the silence")
        stack.wait_for(lambda: len(hook.alerts("firing")) == 2, 20, "the alert that had been silenced")


def test_in_mode_rules_silences_are_read_as_well_and_nothing_is_posted(tmp_path, replica):
    brain = Brain()
    brain.publish(incident("n1"))
    replica.silence(("node", "n1", *IS))
    with alerting(tmp_path / "a", brain, replica.url, mode="rules") as made:
        stack.wait_for(lambda: made.read(time.time_ns()).nodes, 20, "the silence")
        time.sleep(2)
        assert made.replicas == [] and replica.alerts() == []


def test_an_alertmanager_that_is_gone_makes_silences_unknown_and_keeps_what_was_read(tmp_path, hook):
    replica, brain = Replica(tmp_path, hook), Brain()
    brain.publish()
    with alerting(tmp_path / "a", brain, replica.url, mode="rules") as made:
        assert made.read(time.time_ns()).fault.startswith("silences are not known")
        with replica.run():
            replica.silence(("node", "n1", *IS))
            stack.wait_for(lambda: made.read(time.time_ns()).nodes, 20, "the silence")
            assert made.read(time.time_ns()).fault == ""
        stack.wait_for(lambda: made.read(time.time_ns()).fault, 30, "the fault said")
        assert "silences are not known" in made.read(time.time_ns()).fault
        assert made.read(time.time_ns()).nodes, "rather a silence too long than none"


MATCHERS = [
    ("node", "n1", *IS), ("node", "n1", *NOT), ("node", "n[12]", *REGEX), ("node", "n", *REGEX),
    ("node", "n[^1]|x", *NOT_REGEX), ("class", "gpu_lost|hang", *REGEX), ("class", ".*", *REGEX),
    ("class", "gpu_lost", *NOT), ("rack", "", *IS), ("rack", "", *NOT), ("rack", ".+", *REGEX),
    ("rack", "a", *NOT),
    ("severity", "(?i)CRITICAL", *REGEX), ("severity", r"\w+", *REGEX), ("alertname", "Gpuvigil.*", *REGEX),
    ("alertname", "^GpuvigilGpu.{0,4}Failed$", *REGEX), ("uuid", r"GPU-n1-\d", *REGEX),
    ("synthetic", "true", *NOT),
    ("cluster", "a", *IS), ("cluster", "b", *IS), ("entity", r"gpu:GPU\x2dn2.*", *REGEX),
]  # fmt: skip


def test_matchers_are_evaluated_as_alertmanager_does(tmp_path, replica):
    """Every matcher alone and 60 random pairs and threes: the same silences on the same six alerts."""
    chosen = random.Random(5)
    sets = [(matcher,) for matcher in MATCHERS] + [
        tuple(chosen.sample(MATCHERS, chosen.choice((2, 3)))) for _ in range(60)
    ]
    # Alertmanager takes no silence that matches the empty alert alone
    for matchers in sets:
        replica.silence(*matchers, *([("node", "never", *NOT)] if _vague(matchers) else []))
    kinds = itertools.product(("n1", "n2", "n10"), ("gpu_lost", "thermal"))
    incidents = [
        incident(node, name, severity="critical" if node == "n1" else "warning") for node, name in kinds
    ]
    config = AlertingConfig(alertmanagers=[replica.url], labels={"cluster": "a"})
    brain = Brain()
    brain.publish(*incidents)
    client = Alertmanager(replica.url, config, config.tls.context("test"))
    rows = client.silences()
    client.close()
    assert len(rows) == len(sets)
    with alerting(tmp_path / "a", brain, replica.url, labels={"cluster": "a"}):
        stack.wait_for(lambda: len(everything(replica)) == len(incidents), 20, "all alerts")
        time.sleep(1)
        theirs = {
            one["labels"]["fingerprint"]: set(one["status"]["silencedBy"]) for one in everything(replica)
        }
    ours = {}
    for one in incidents:
        labels = dict(labels_of(one, config.labels))
        named = [(row.id, read_rows([row], time.time_ns())[0]) for row in rows]
        ours[one.fingerprint] = {id_ for id_, silence in named if silence.covers_alert(labels)}
    assert ours == theirs
    assert sum(len(ids) for ids in theirs.values()) > 100, "the comparison is of something"
    whole = Cover(read_rows(rows, time.time_ns()), config.labels)
    assert all(whole.node(node, time.time_ns()) for node in ("n1", "n2"))


def everything(replica):
    return json.loads(stack.fetch(f"{replica.url}/api/v2/alerts?silenced=true"))


def _vague(matchers):
    """True where Alertmanager would refuse the silence: every matcher is satisfied by a missing label."""
    import re2

    def empty(value, regex, equal):
        return (bool(re2.fullmatch(value, "")) if regex else value == "") is equal

    return all(empty(value, regex, equal) for _, value, regex, equal in matchers)
