"""An operator has an agent start a supervised job: who may, what is refused, what the journal says."""

from __future__ import annotations

import json

import httpx
import pytest
from contract.operator_help import rig_with_tokens, say, told

from gpuvigil_collector.action import AmbiguousError, RefusedError
from gpuvigil_collector.repair.begin import JobStart


@pytest.fixture
def rig(tmp_path):
    return rig_with_tokens(tmp_path)


@pytest.fixture
def api(rig):
    with rig.serve() as url, httpx.Client(base_url=url, trust_env=False, timeout=15) as client:
        yield client


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
