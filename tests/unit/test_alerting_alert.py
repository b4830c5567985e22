"""An incident's alert: labels that never move, annotations that are clean, times that Alertmanager takes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest
from integration.alert_stack import Brain, incident
from unit.incident_help import finding, gpu

from gpuvigil_collector.alerting.alert import ALERTS_MAX, alert_of, labels_of, trial_of, wanted, wire
from gpuvigil_collector.alerting.service import Alerting
from gpuvigil_collector.alerting.settings import AlertAuth, AlertingConfig
from gpuvigil_collector.config import load
from gpuvigil_protos.settings import ConfigError

CONFIG = AlertingConfig(
    labels={"cluster": "a"}, runbooks="https://r.example/b/", dashboard="https://g.example/d/x"
)


def test_labels_do_not_move_as_an_incident_grows():
    one = incident()
    grown = replace(
        one, id="other", cause="Xid 79 and more", opened_ns=5, seen_ns=9, gpus=8,
        findings=(*one.findings, finding("thermal", gpu("n1", 1), score=7.5)),
    )  # fmt: skip
    assert labels_of(one, CONFIG.labels) == labels_of(grown, CONFIG.labels)
    labels = dict(labels_of(one, CONFIG.labels))
    assert not {"incident", "gpu", "score", "replica", "instance"} & labels.keys()
    assert all(labels.values()), "an empty label is none"


def test_annotations_are_one_printable_line_each():
    hostile = incident(cause="\x1b[2J" + "A" * 5000 + "\n<script>")
    notes = dict(alert_of(hostile, CONFIG).annotations)
    assert all(text.isprintable() and len(text) <= 1000 for text in notes.values())
    assert notes["runbook_url"] == "https://r.example/b/GpuvigilGpuFailed.md"
    assert notes["dashboard_url"] == "https://g.example/d/x?var-node=n1"
    assert notes["incident"] == hostile.id and f"gpuvigil why {hostile.id}" in notes["evidence"]


@pytest.mark.parametrize("starts_ns", [0, 10**18, 4 * 10**18])
@pytest.mark.parametrize("ends_ns", [0, 1, 2 * 10**18])
def test_no_clock_makes_an_alert_end_before_it_starts(starts_ns, ends_ns):
    row = wire(replace(alert_of(incident(), CONFIG), starts_ns=starts_ns, ends_ns=ends_ns), 15 * 10**17, 240)
    assert datetime.fromisoformat(row["startsAt"]) <= datetime.fromisoformat(row["endsAt"])
    if not ends_ns:
        assert (datetime.fromisoformat(row["endsAt"]).timestamp() - 1.5e9) == pytest.approx(240)


def test_the_gravest_come_first_and_the_rest_is_counted():
    many = [incident(f"n{n}", severity="warning") for n in range(ALERTS_MAX + 3)] + [incident("grave")]
    alerts, left_out = wanted(many, CONFIG)
    assert len(alerts) == ALERTS_MAX and left_out == 4
    assert labels_of(many[-1], CONFIG.labels) in alerts


def test_a_test_alert_is_marked_and_ends_by_itself(tmp_path):
    assert dict(trial_of(1, CONFIG).labels)["synthetic"] == "true"
    brain = Brain()
    config = AlertingConfig(mode="api", alertmanagers=["http://127.0.0.1:1"], silences=False)
    made = Alerting(config, tmp_path, lambda: brain.view, grace_s=0)
    assert made.wanted() is None, "before the first tick nothing is known"
    brain.publish()
    made.trial.begin(10, made.trial.starts_ns)
    assert not made.wanted().alerts, "long over"
    import time

    made.trial.begin(10, time.time_ns())
    wants = made.wanted()
    assert [dict(key)["alertname"] for key in wants.alerts] == ["GpuvigilTestAlert"]


def test_ends_are_those_of_the_incidents(tmp_path):
    brain, one = Brain(), incident()
    config = AlertingConfig(mode="api", alertmanagers=["http://127.0.0.1:1"], silences=False)
    made = Alerting(config, tmp_path, lambda: brain.view, grace_s=0)
    brain.publish(one)
    brain.publish()
    ended = made.wanted().ended()
    assert ended[labels_of(one, {})] == brain.view.resolved[one.id].resolved_ns


WRONG = [
    ("mode='api'", ["alerting.alertmanagers", "at least one URL"]),
    ("mode='both'", ["alerting.mode", "rules, api"]),
    ("alertmanagers=['am:9093']", ["alerting.alertmanagers", 'got "am:9093"']),
    ("alertmanagers=['http://u:p@127.0.0.1:9093']", ["alerting.alertmanagers", "expected a URL"]),
    ("alertmanagers=['http://127.0.0.1:99999']", ["alerting.alertmanagers", "expected a URL"]),
    ("alertmanagers=['http://am.example:9093']", ["not on loopback", "alerting.insecure"]),
    ("alertmanagers=['http://127.0.0.1:1','http://127.0.0.1:1/']", ["each replica once"]),
    ("resend='10s'", ["alerting.resend", '"30s" to "180s"']),
    ("resend='5min'", ["alerting.resend", "got 300 s"]),
    ("[alerting.labels]\nseverity='x'", ["alerting.labels.severity", "does not set itself"]),
    ("[alerting.labels]\nreplica='x'", ["alerting.labels.replica", "one incident would be two"]),
    ("[alerting.labels]\n'a-b'='x'", ["alerting.labels", "letters, digits and _"]),
    ("[alerting.labels]\ncluster=''", ["alerting.labels.cluster"]),
    ("[alerting.auth]\nuser='a'", ["alerting.auth", "together"]),
    ("[alerting.auth]\ntoken_file='/nowhere/t'", ["alerting.auth.token_file", "/nowhere/t"]),
    ("[alerting.tls]\nca='/nowhere/ca'", ["alerting.tls.ca", "/nowhere/ca"]),
    ("[alerting.tls]\ncertificate='/nowhere/c'", ["alerting.tls", "certificate and key"]),
    ("alertmanager=['http://127.0.0.1:1']", ['unknown key "alerting.alertmanager"', 'mean "alertmanagers"']),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_a_wrong_config_is_refused_with_its_reason(tmp_path, text, words):
    path = tmp_path / "collector.toml"
    path.write_text(f"[alerting]\n{text}\n" if not text.startswith("[") else f"{text}\n")
    with pytest.raises(ConfigError) as refusal:
        load(path, [])
    for word in [str(path), *words]:
        assert word in str(refusal.value)


def test_a_secret_goes_over_tls_or_loopback_alone_and_is_never_shown(tmp_path):
    secret = tmp_path / "token"
    secret.write_text("hunter2\n")
    auth = AlertAuth(token_file=str(secret))
    AlertingConfig(alertmanagers=["http://127.0.0.1:1", "https://am.example"], auth=auth).check("f")
    with pytest.raises(ConfigError, match="never sent in plain text"):
        AlertingConfig(alertmanagers=["http://am.example"], auth=auth, insecure=True).check("f")
    secret.write_bytes(b"hunter2\xff")
    with pytest.raises(ConfigError) as refusal:
        AlertingConfig(auth=auth).check("f")
    assert "hunter2" not in str(refusal.value)
