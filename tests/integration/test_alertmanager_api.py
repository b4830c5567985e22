"""mode = "api" against a real Alertmanager: webhooks received, resolved once, replicas down, restarts."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from dataclasses import replace

import pytest
from integration import stack
from integration.alert_stack import Brain, Replica, alerting, incident, webhook

from gpuvigil_collector.alerting.replica import STAYS

pytestmark = [pytest.mark.needs_alertmanager, pytest.mark.timeout(180)]
CALM_S = 5  # more than an alert stays without us (4 s here), and several of Alertmanager's group intervals


@pytest.fixture
def hook():
    with webhook() as made:
        yield made


@pytest.fixture
def replica(tmp_path, hook):
    made = Replica(tmp_path, hook)
    with made.run():
        yield made


def told(hook, status, count=1):
    return stack.wait_for(lambda: hook.alerts(status)[count - 1 :], 30, f"{count} webhooks: {status}")


def test_a_webhook_comes_once_and_is_resolved_once(tmp_path, hook, replica):
    brain, one = Brain(), incident()
    with alerting(
        tmp_path / "a", brain, replica.url, labels={"cluster": "a"}, runbooks="https://r.example"
    ) as made:
        time.sleep(1.5)
        assert replica.alerts() == [], "nothing before the first tick"
        brain.publish(one)
        told(hook, "firing")
        time.sleep(CALM_S)
        (alert,) = hook.alerts("firing")
        assert alert["labels"] == {
            "alertname": "GpuvigilGpuFailed", "severity": "critical", "class": "gpu_lost", "scope": "gpu",
            "node": "n1", "uuid": "GPU-n1-1", "entity": "gpu:GPU-n1-1", "cluster": "a",
            "fingerprint": one.fingerprint,
        }  # fmt: skip
        assert alert["annotations"]["description"] == one.cause and alert["annotations"]["incident"] == one.id
        assert alert["annotations"]["runbook_url"] == "https://r.example/GpuvigilGpuFailed.md"
        assert hook.alerts("resolved") == [], f"sent again, so it outlives its {STAYS} s"
        assert made.replicas[0].state.sent >= 4
        brain.publish()
        told(hook, "resolved")
        sent = made.replicas[0].state.sent
        time.sleep(CALM_S)
        assert len(hook.alerts("resolved")) == 1 and len(hook.alerts("firing")) == 1
        assert made.replicas[0].state.sent == sent, "an end that was taken is not sent again"
        assert made.replicas[0].state.waiting == 0


def test_a_raised_severity_ends_the_lesser_alert(tmp_path, hook, replica):
    brain, one = Brain(), incident(severity="warning")
    with alerting(tmp_path / "a", brain, replica.url):
        brain.publish(one)
        told(hook, "firing")
        brain.publish(replace(one, severity="critical"))
        told(hook, "firing", 2)
        stack.wait_for(
            lambda: [a["labels"]["severity"] for a in replica.alerts()] == ["critical"], 20, "one alert"
        )
        assert {a["labels"]["severity"] for a in hook.alerts("resolved")} <= {"warning"}


def test_o6_two_collectors_are_one_alert_resolved_once(tmp_path, hook, replica):
    """Ids, opening times and sentences differ between collectors; labels do not."""
    first, second = Brain(), Brain()
    ours, theirs = incident(), incident(cause="another sentence")
    assert ours.id != theirs.id and ours.opened_ns != theirs.opened_ns
    with (
        alerting(tmp_path / "a", first, replica.url) as a,
        alerting(tmp_path / "b", second, replica.url) as b,
    ):
        first.publish(ours)
        second.publish(theirs)
        told(hook, "firing")
        time.sleep(CALM_S)
        assert len(replica.alerts()) == 1 and len(hook.alerts("firing")) == 1
        assert min(a.replicas[0].state.sent, b.replicas[0].state.sent) >= 3
        first.publish()
        second.publish()
        told(hook, "resolved")
        time.sleep(CALM_S)
        assert len(hook.alerts("resolved")) == 1


def test_one_collector_of_two_may_die(tmp_path, hook, replica):
    first, second = Brain(), Brain()
    with alerting(tmp_path / "b", second, replica.url):
        with alerting(tmp_path / "a", first, replica.url):
            first.publish(incident())
            second.publish(incident())
            told(hook, "firing")
        time.sleep(CALM_S)
        assert hook.alerts("resolved") == [] and len(replica.alerts()) == 1


def test_a_restarted_collector_neither_repeats_nor_resolves(tmp_path, hook, replica):
    one = incident()
    brain = Brain()
    with alerting(tmp_path / "a", brain, replica.url, resend=2):
        brain.publish(one)
        told(hook, "firing")
    again = Brain(started_ns=time.time_ns())
    with alerting(tmp_path / "a", again, replica.url, resend=2, grace_s=60):
        again.publish()  # its first ticks have not found the fault again
        time.sleep(2)
        again.publish(one)
        time.sleep(CALM_S)
        assert (len(hook.alerts("firing")), len(hook.alerts("resolved"))) == (1, 0)
        again.publish()
        told(hook, "resolved")
        time.sleep(2)
        assert len(hook.alerts("resolved")) == 1


def test_what_ended_while_nobody_could_tell_is_told_after_the_restart(tmp_path, hook):
    """The replica is down as the incident ends, and the collector restarts: the end is not forgotten."""
    made, brain = Replica(tmp_path, hook), Brain()
    with made.run(), alerting(tmp_path / "a", brain, made.url, resend=30):
        brain.publish(incident())
        told(hook, "firing")
    # started again without the incident, which has ended meanwhile
    again = Brain(started_ns=1)
    with alerting(tmp_path / "a", again, made.url, resend=30):
        again.publish()
        time.sleep(2)
        with made.run():
            told(hook, "resolved")
            time.sleep(3)
            assert len(hook.alerts("resolved")) == 1


def test_a_dead_replica_holds_the_other_up_in_nothing_and_hears_it_all(tmp_path, hook):
    live, dead, brain = Replica(tmp_path, hook), Replica(tmp_path, hook), Brain()
    with live.run(), alerting(tmp_path / "a", brain, live.url, dead.url) as made:
        begun = time.monotonic()
        brain.publish(incident("n1"), incident("n2"))
        stack.wait_for(lambda: len(live.alerts()) == 2, 20, "both on the live one")
        assert time.monotonic() - begun < 3 * 3
        stack.wait_for(lambda: not made.replicas[1].state.up, 20, "the dead one noticed")
        assert made.replicas[0].state.up and made.replicas[1].state.waiting == 2
        with dead.run() as process:
            stack.wait_for(lambda: len(dead.alerts()) == 2, 60, "both on the one that is back")
            # it forgets everything, and is told again although nothing is due
            process.kill()
            process.wait(10)
            stack.wait_for(lambda: not made.replicas[1].state.up, 20, "gone again")
        with dead.run():
            stack.wait_for(lambda: len(dead.alerts()) == 2, 60, "both once more")
            brain.publish(next(iter(brain.view.open.values())))
            stack.wait_for(lambda: len(dead.alerts()) == 1 == len(live.alerts()), 60, "one left on both")


@contextlib.contextmanager
def silent_server():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_replica_that_never_answers_holds_up_nobody(tmp_path, hook, replica):
    brain = Brain()
    with silent_server() as slow, alerting(tmp_path / "a", brain, slow, replica.url) as made:
        brain.publish(incident())
        stack.wait_for(replica.alerts, 9, "the alert on the other")
        stack.wait_for(lambda: made.replicas[0].state.failures, 20, "the failure counted")
        assert made.replicas[1].state.up


def test_an_alert_that_is_refused_keeps_no_other(tmp_path):
    """A server that answers 400 to whatever holds one node's alert, as Alertmanager does to a bad label."""
    taken = []

    class Picky(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            alerts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bad = any(alert["labels"]["node"] == "n3" for alert in alerts)
            taken.extend([] if bad else [alert["labels"]["node"] for alert in alerts])
            self.send_response(400 if bad else 200)
            self.end_headers()

        def log_message(self, *_):
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Picky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    brain = Brain()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with alerting(tmp_path / "a", brain, url, silences=False, resend=30) as made:
            brain.publish(*(incident(f"n{number}") for number in range(7)))
            stack.wait_for(lambda: len(taken) == 6, 20, "the six others")
            assert sorted(taken) == ["n0", "n1", "n2", "n4", "n5", "n6"]
            assert (made.replicas[0].state.refused, made.replicas[0].state.failures) == (1, 0)
            assert made.replicas[0].state.up
    finally:
        server.shutdown()
        server.server_close()


def test_drills_carry_a_label_and_can_be_off(tmp_path, hook, replica):
    brain, drill = Brain(), incident("n2", synthetic=True)
    with alerting(tmp_path / "a", brain, replica.url):
        brain.publish(drill)
        told(hook, "firing")
        assert hook.alerts("firing")[0]["labels"]["synthetic"] == "true"
    with alerting(tmp_path / "b", brain, replica.url, synthetic=False) as made:
        time.sleep(2.5)
        assert made.replicas[0].state.sent == 0
