"""What operators say over HTTP: who may, what is done, what is refused, and what the journal says of it."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest
from contract.operator_help import TOKENS, rig_with_tokens, say, told
from contract.test_api_asks import ASK
from unit.brain_help import Rig
from unit.incident_help import finding

from gpuvigil_collector.action_store import ActionStore
from gpuvigil_collector.config import CollectorConfig, SaveSettings
from gpuvigil_collector.journal import Journal
from gpuvigil_collector.repair import words
from gpuvigil_collector.repair.plant import Plant
from gpuvigil_collector.repair.settings import Remediation
from gpuvigil_collector.saves.desk import SaveDesk
from gpuvigil_collector.web import operator
from gpuvigil_protos import pause

RANK = ["nobody", "viewer", "operator", "admin"]


@pytest.fixture
def rig(tmp_path):
    return rig_with_tokens(tmp_path)


@pytest.fixture
def api(rig):
    with rig.serve() as url, httpx.Client(base_url=url, trust_env=False, timeout=15) as client:
        yield client


def case_now(api):
    return api.get("/api/v1/cases").json()["items"], api.get("/api/v1/actions").json()["items"]


def lose_a_gpu(rig, node="n0"):
    """A fatal fact about a GPU of a node, as the rules would say it."""
    uuid = rig.fleet.nodes[node].gpus[0].uuid
    rig.rules.findings = [
        finding("gpu_lost", f"{node}/gpu:{uuid}", severity="critical", rule="gpu_lost", origin="driver")
    ]
    for _ in range(8):
        rig.tick()
    [incident] = rig.pipeline.view.open.values()
    return incident


@pytest.mark.parametrize("path", sorted(operator.PATHS))
def test_every_write_is_refused_below_its_role(rig, api, path):
    needed = operator._WRITES[path].role
    for token in ("", "unknown", "v", "o", "a"):
        role = TOKENS.get(token, "nobody")
        answer = say(rig, api, path.removeprefix("/api/v1/").replace("{id}", "n0"), token, why="x")
        if RANK.index(role) < RANK.index(needed):
            assert answer.status_code == (401 if role == "nobody" else 403), (token, answer.text)
        else:
            assert answer.status_code in {200, 409}, (token, answer.text)


def test_r10_pause_stops_what_waits_and_resume_lets_it_go_on(rig, api):
    assert say(rig, api, "pause", why="looking at rack 3").status_code == 200
    assert api.get("/api/v1/remediation").json()["paused"]["why"] == "looking at rack 3"
    incident = lose_a_gpu(rig)
    [case] = api.get("/api/v1/cases").json()["items"]
    assert case["denied_by"] == "pause" and "looking at rack 3" in case["waits"]
    assert say(rig, api, "resume", why="seen").status_code == 200
    assert say(rig, api, "resume", why="seen").status_code == 409
    for _ in range(8):
        rig.tick()
    assert api.get("/api/v1/remediation").json()["awaiting_approval"] != [], case_now(api)
    assert rig.effects.asked == []
    assert any(what == "operator_paused" and "looking at rack 3" in detail for what, detail in told(rig))
    denied = [json.loads(detail) for what, detail in told(rig, incident.id) if what == "action_denied"]
    assert any(one.get("gate") == "pause" for one in denied)


def test_an_approval_has_the_effect_and_carries_the_name(rig, api):
    incident = lose_a_gpu(rig)
    [waiting] = api.get("/api/v1/remediation").json()["awaiting_approval"]
    row = api.get(f"/api/v1/actions/{waiting}").json()
    assert (row["kind"], row["state"], row["node"]) == ("hold", "awaiting", "n0")
    assert [gate["name"] for gate in row["gates"]][:3] == ["mode", "pause", "maintenance"]
    answer = say(rig, api, f"actions/{waiting}/approve")
    assert answer.status_code == 200, answer.text
    rig.tick()
    assert rig.effects.asked == [("hold", "n0")]
    [approval] = [detail for what, detail in told(rig, incident.id) if what == "operator_approve"]
    assert json.loads(approval) == {"who": "operator@site", "why": waiting}
    assert say(rig, api, f"actions/{waiting}/approve").status_code == 409
    whole = api.get(f"/api/v1/incidents/{incident.id}").json()
    assert whole["cases"][0]["held"] and whole["state"] == "remediating"
    assert any(gate["name"] == "evidence" for gate in whole["actions"][0]["gates"])


def test_a_rejection_ends_the_case(rig, api):
    lose_a_gpu(rig)
    [waiting] = api.get("/api/v1/remediation").json()["awaiting_approval"]
    assert say(rig, api, f"actions/{waiting}/reject", why="we swap it at noon").status_code == 200
    rig.tick()
    [case] = api.get("/api/v1/cases").json()["items"]
    assert case["outcome"] == "rejected" and "we swap it at noon" in case["trail"][-1]["what"]
    assert rig.effects.asked == []


def test_maintenance_denies_and_ends(rig, api):
    answer = say(rig, api, "nodes/n0/maintenance", why="swap NIC", seconds=7200)
    assert answer.status_code == 200 and answer.json()["node"] == "n0"
    lose_a_gpu(rig)
    [case] = api.get("/api/v1/cases").json()["items"]
    assert case["denied_by"] == "maintenance" and "swap NIC" in case["waits"]
    assert say(rig, api, "nodes/n0/maintenance/end").status_code == 200
    assert say(rig, api, "nodes/nowhere/maintenance", seconds=60).status_code == 409


@pytest.mark.parametrize(("body", "field"), [
    ({"seconds": -1}, "seconds"), ({"seconds": 1e12}, "seconds"), ({"wy": "typo"}, "body"),
    ({"seconds": "2h"}, "body"), ({"why": "x" * 5000}, "body"),
])  # fmt: skip
def test_a_bad_body_names_the_field(rig, api, body, field):
    answer = say(rig, api, "nodes/n0/maintenance", **body)
    assert answer.status_code == 409 and answer.json()["error"]["field"] == field


def test_acknowledged_silenced_and_hostile_words_are_kept_clean(rig, api):
    incident = lose_a_gpu(rig)
    answer = say(rig, api, f"incidents/{incident.id}/acknowledge", why="Bob \x1b[31m looks\n", seconds=600)
    assert answer.status_code == 200
    rig.tick()
    assert all("\x1b" not in detail and "\n" not in detail for _, detail in told(rig, incident.id))
    assert rig.pipeline.view.repair.marks.acknowledged[incident.fingerprint].by == "operator@site"


def test_a_false_positive_is_believed_less_until_it_says_more(rig, api):
    bad = finding("gpu_slow", "n0/gpu:GPU-0", severity="warning", rule="forest", score=4.0)
    rig.rules.findings = [bad]
    for _ in range(5):
        rig.tick()
    [incident] = rig.pipeline.view.open.values()
    answer = say(rig, api, f"incidents/{incident.id}/false-positive", why="new firmware", seconds=3600)
    assert answer.status_code == 200
    for _ in range(60):
        rig.tick()
    assert rig.pipeline.view.open == {}
    rig.rules.findings = [finding("gpu_slow", "n0/gpu:GPU-0", severity="warning", rule="forest", score=6.5)]
    for _ in range(5):
        rig.tick()
    assert len(rig.pipeline.view.open) == 1


def test_a_drill_needs_a_node_and_an_xid(rig, api):
    assert say(rig, api, "nodes/n0/drill", what="xid=79").status_code == 200
    assert say(rig, api, "nodes/n0/drill", what="rm -rf").status_code == 409
    assert say(rig, api, "nodes/n9/drill", what="xid=79").status_code == 409


def test_tokens_that_are_no_tokens(rig, api):
    for value in ("Bearer", "Basic b", f"Bearer {'x' * 600}", "Bearer o o"):
        answer = api.post("/api/v1/pause", headers=ASK | {"Authorization": value})
        assert answer.status_code == 401, value


def test_only_an_admin_settles_what_stays_ambiguous_and_the_journal_says_who(rig, api):
    incident = lose_a_gpu(rig)
    [waiting] = api.get("/api/v1/remediation").json()["awaiting_approval"]
    path = f"actions/{waiting}/settle"
    said = {"what": "done", "why": "seen on the console"}
    assert say(rig, api, path, "o", **said).status_code == 403
    assert say(rig, api, path, "a", **said).status_code == 409, "it waits for approval: nothing is ambiguous"
    rig.effects.records = rig.records
    rig.records.write(replace(rig.records.get(waiting), state="ambiguous"))
    for wrong in ({"what": "maybe"}, {"why": " "}):
        answer = say(rig, api, path, "a", **(said | wrong))
        assert (answer.status_code, answer.json()["error"]["field"]) == (409, next(iter(wrong)))
    answer = say(rig, api, path, "a", **said)
    assert (answer.status_code, answer.json()["state"]) == (200, "done")
    rig.tick()
    [settled] = [json.loads(detail) for what, detail in told(rig, incident.id) if what == "operator_settle"]
    assert settled == {"who": "admin@site", "why": f"{waiting} done: seen on the console"}
    assert (
        api.get(f"/api/v1/actions/{waiting}").json()["outcome"]
        == "settled by admin@site: seen on the console"
    )


def test_r10_a_pause_outlives_a_killed_collector(tmp_path):
    """The pause of one run, read by the next from the real store; nobody says anything in between."""
    first = ActionStore(tmp_path / "state")
    before = Rig(tmp_path / "before", remediation=Remediation(mode="act"), records=first)
    before.tick()
    asked = before.repair.desk.ask(words.pause("ann", "looking at rack 3"))
    before.tick()
    assert asked.result(0) == {"done": "paused", "by": "ann"}
    first.close()  # killed: nothing more is written
    run = Rig(
        tmp_path / "after", remediation=Remediation(mode="act"), records=ActionStore(tmp_path / "state")
    )
    assert run.repair.is_paused() == "ann: looking at rack 3", "before its first tick"
    lose_a_gpu(run)
    [case] = run.pipeline.view.repair.cases
    assert (case.denied_by, run.effects.asked) == ("pause", []) and "looking at rack 3" in case.waits
    run.repair.desk.ask(words.resume("ann", "seen"))
    for _ in range(8):
        run.tick()
    assert run.effects.asked != [], "resumed, it acts: the test can see an effect"
    run.records.close()


def test_r10_a_pause_file_on_the_collectors_host_pauses_the_collector(tmp_path, monkeypatch):
    """`pause --local` beside a collector that is down: what starts then is paused, and looks each time."""
    said = ["/etc/gpuvigil/pause: ann: rack 3"]
    monkeypatch.setattr(pause, "paused", lambda: said[0])
    made = Plant(
        CollectorConfig(), tmp_path, saves=SaveDesk(SaveSettings(), lambda _: None),
        journal=Journal(tmp_path, entries_max=10, keep_s=10), send=lambda _: None, snapshot=lambda: None,
    )  # fmt: skip
    try:
        assert made.repair.is_paused() == said[0] == made.executor._attempt.paused()
        said[0] = ""
        assert made.repair.is_paused() == "" == made.executor._attempt.paused()
    finally:
        made.store.close()
