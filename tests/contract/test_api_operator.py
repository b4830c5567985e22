"""What operators say over HTTP: who may, what is done, what is refused, and what the journal says of it."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest
from contract.test_api_asks import ASK, ticking
from unit.brain_help import Rig
from unit.incident_help import finding

from gpuvigil_collector.action import AmbiguousError, RefusedError
from gpuvigil_collector.repair.begin import JobStart
from gpuvigil_collector.repair.settings import Remediation
from gpuvigil_collector.web import operator, roles

TOKENS = {"v": "viewer", "o": "operator", "a": "admin"}
RANK = ["nobody", "viewer", "operator", "admin"]


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path, remediation=Remediation(mode="recommend"))
    file = tmp_path / "tokens"
    lines = [
        f"{role}@site {role} {hashlib.sha256(token.encode()).hexdigest()}  # a comment"
        for token, role in TOKENS.items()
    ]
    file.write_text("\n".join(["", *lines]))
    made.roles = roles.load(str(file), tmp_path)
    made.tick()
    return made


@pytest.fixture
def api(rig):
    with rig.serve() as url, httpx.Client(base_url=url, trust_env=False, timeout=15) as client:
        yield client


def say(rig, api, path, token="o", **body):
    headers = ASK | ({"Authorization": f"Bearer {token}"} if token else {})
    return ticking(rig, lambda: api.post(f"/api/v1/{path}", headers=headers, json=body))


def told(rig, incident=""):
    return [(row["what"], row["detail"]) for row in rig.journal.entries(incident)]


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


class Agents:
    """What the executor's part of a start promises; the real one is in tests/integration."""

    def __init__(self):
        self.started, self.error = [], None

    def begin_job(self, job, node, action, fence, avoid):
        if self.error:
            raise self.error
        self.started.append((job, node, fence.generation, sorted(avoid)))
        return f"{node or 'n1'}: {job} started, pid 7"


def start(rig, api, token="o", **body):
    agents = Agents()
    agents.error = body.pop("error", None)
    rig.start = JobStart(agents, rig.repair.desk.ask, body.pop("fence", rig._fence))
    return say(rig, api, "jobs/train/start", token, **body), agents


def test_an_operator_starts_a_job_and_the_journal_says_who_and_what_came_of_it(rig, api):
    for token, status in (("", 401), ("v", 403), ("o", 200)):
        answer, agents = start(rig, api, token, node="n0")
        assert answer.status_code == status
        assert agents.started == ([("train", "n0", 1, [])] if status == 200 else [])
    assert answer.json()["outcome"] == "n0: train started, pid 7"
    said = [(what, json.loads(detail)) for what, detail in told(rig) if "start" in what]
    assert ("operator_start", {"who": "operator@site", "why": "train on n0"}) in said
    ended = {"who": "operator@site", "why": "train: n0: train started, pid 7"}
    assert ("operator_start_ended", ended) in said


def test_a_start_is_refused_where_it_cannot_be_meant(rig, api):
    def refusal(**more):
        answer, agents = start(rig, api, **more)
        assert (answer.status_code, agents.started) == (409, []), answer.text
        return answer.json()["error"]["got"]

    assert refusal(node="n9") == "n9"
    assert "the lease is not ours" in refusal(fence=lambda: None)
    assert refusal(error=RefusedError("train runs on n0 already")) == "train runs on n0 already"
    assert any("refused: train runs on n0 already" in detail for _, detail in told(rig))
    assert "look before" in refusal(error=AmbiguousError("n0: no answer"))
    assert say(rig, api, "nodes/n0/maintenance", why="swap NIC", seconds=600).status_code == 200
    rig.tick()
    assert "under maintenance" in refusal(node="n0")
    _, agents = start(rig, api)
    assert agents.started == [("train", "", 1, ["n0"])], "another node is as good"
    assert say(rig, api, "pause", why="looking").status_code == 200
    rig.tick()
    assert "looking" in refusal(node="n1")
