"""The shipped rules: in sync with the table, each with a runbook, each fired by a recording."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from gpuvigil_collector.alerting import rules
from gpuvigil_collector.alerting.names import ROWS
from gpuvigil_protos.fault_classes import FAULT_CLASSES

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
RECORDED = ROOT / "tests/fixtures/alerts"
RUNS = ("fleet", "own", "pair", "stalled", "normal")
SECTIONS = ["Meaning", "Evidence", "Safe checks", "What gpuvigil will do", "How to stop it"]
ALERTS = {
    rule["alert"]: rule
    for file in FILES
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
}


def test_the_incidents_rules_are_made_from_the_table():
    """When this fails: write what `python -m gpuvigil_collector.alerting.rules` prints to the file."""
    assert (ROOT / "deploy/prometheus/rules/gpuvigil-incidents.yml").read_text() == rules.document()


def test_every_fault_class_has_one_alert():
    named = [name for row in ROWS for name in row.classes]
    assert sorted(named) == sorted(FAULT_CLASSES)
    assert {row.name for row in ROWS} <= ALERTS.keys()


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_is_named_labelled_and_explained(name):
    rule = ALERTS[name]
    assert re.fullmatch(r"Gpuvigil([A-Z][a-z]+)+", name)
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url", "dashboard_url"}
    assert "{{" not in annotations["summary"], "a summary is a static sentence"
    assert annotations["runbook_url"].endswith(f"/{name}.md")
    given = rule.get("labels", {}).get("severity")
    assert given in {"critical", "warning", "info", "none"} or "severity" in rule["expr"], (
        "or the incident's own"
    )
    assert "replica" not in str(rule.get("labels"))


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_has_a_runbook(name):
    text = (ROOT / f"deploy/runbooks/{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    assert parts[::2] == SECTIONS
    assert all(len(body.strip()) > 30 for body in parts[1::2]), "no section is empty"


def test_no_runbook_is_of_no_alert():
    assert {path.stem for path in (ROOT / "deploy/runbooks").glob("*.md")} == ALERTS.keys()


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_a_recording_fires_it_and_another_does_not(name):
    """Each alert must be firing in a recorded run; all but the Watchdog must be silent on the normal day."""
    wanted = f'max by (alertname) (ALERTS{{alertname="{name}",alertstate="firing"'
    tests = [
        test["promql_expr_test"]
        for run in RUNS
        for test in yaml.safe_load((RECORDED / f"{run}.yml").read_text())["tests"]
    ]
    expected = [one for test in tests for one in test if name in one["expr"] and one["exp_samples"]]
    if name != "GpuvigilWatchdog":
        assert [one for one in expected if one["expr"].startswith(wanted)], f"no recording fires {name}"
    assert expected
    day = yaml.safe_load((RECORDED / "normal.yml").read_text())["tests"][0]["promql_expr_test"]
    (silent,) = [one for one in day if 'alertname!="GpuvigilWatchdog"' in one["expr"]]
    assert silent["exp_samples"] == [] and "[86400s]" in silent["expr"]


@pytest.mark.needs_prometheus
def test_promtool_finds_the_rules_right():
    done = subprocess.run(["promtool", "check", "rules", *FILES], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs_prometheus
@pytest.mark.timeout(300)
@pytest.mark.parametrize("run", RUNS)
def test_promtool_plays_the_recording(run):
    """`promtool test rules`: fires on its fault, silent before it and on a day without faults."""
    command = ["promtool", "test", "rules", f"{run}.yml"]
    done = subprocess.run(command, cwd=RECORDED, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs_prometheus
@pytest.mark.parametrize(("run", "name"), [("fleet", "GpuvigilGpuFailed"), ("own", "GpuvigilJournalFault")])
def test_a_rule_that_never_fires_fails_its_recording(tmp_path, run, name):
    """The recordings can fail: with the alert's expression made never true, promtool objects."""
    place = tmp_path / "a/b/c"
    place.mkdir(parents=True)
    (tmp_path / "deploy/prometheus/rules").mkdir(parents=True)
    (place / "run.yml").write_text((RECORDED / f"{run}.yml").read_text())
    for file in FILES:
        text = re.sub(rf"(- alert: {name}\n\s+expr: ).*", r"\1vector(0) > 1", file.read_text())
        (tmp_path / "deploy/prometheus/rules" / file.name).write_text(text)
    done = subprocess.run(
        ["promtool", "test", "rules", "run.yml"], cwd=place, capture_output=True, timeout=60
    )
    assert done.returncode != 0
