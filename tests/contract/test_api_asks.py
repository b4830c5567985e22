"""The one thing that is not reading: asking a job. Who may, what is answered, and the accounts beside it."""

from __future__ import annotations

import threading
import time

import httpx
import pytest
from unit.brain_help import Rig
from unit.fake_snapshot import SECOND

from gpuvigil_collector.ingest.frames import Result

ASK = {"X-Gpuvigil-Request": "1"}
PATH = "/api/v1/jobs/j/checkpoint"


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Rig(tmp_path_factory.mktemp("state"))
    for rank in range(2):
        fields = {"world_size": "2", "on_request": "save"}
        made.fleet.event("n0", "rank_up", f"rank:j/{rank}", origin="job", fields=fields)
    made.tick()
    return made


@pytest.fixture(scope="module")
def api(rig):
    token = {"Authorization": f"Bearer {rig.token}"}
    with rig.serve() as url, httpx.Client(base_url=url, trust_env=False, headers=token) as client:
        yield client


def ticking(rig, request):
    """Tick beside a request, as the brain does."""
    done = threading.Event()

    def tick():
        while not done.is_set():
            rig.tick(0.1)
            time.sleep(0.05)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        return request()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(("headers", "status", "field"), [
    ({}, 403, "X-Gpuvigil-Request"), ({"X-Gpuvigil-Request": "yes"}, 403, "X-Gpuvigil-Request"),
    (ASK | {"Host": "evil.example:9512"}, 403, "Host"), (ASK | {"Host": ""}, 403, "Host"),
    (ASK | {"Host": "127.0.0.1.evil.example"}, 403, "Host"),
])  # fmt: skip
def test_a_page_of_another_origin_asks_for_nothing(api, rig, headers, status, field):
    answer = api.post(PATH, headers=headers)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
    assert rig.sent == []


@pytest.mark.parametrize(
    "path", ["/api/v1/jobs", "/api/v1/jobs/j", "/api/v1/jobs/a/b/checkpoint", "/metrics"]
)
def test_nothing_else_may_be_asked(api, path):
    assert api.post(path, headers=ASK).status_code in {404, 405}


def test_asked_followed_and_refused_while_it_is_under_way(api, rig):
    answer = ticking(rig, lambda: api.post(PATH, headers=ASK))
    assert answer.status_code == 202, answer.text
    row = answer.json()
    assert (row["job"], row["kind"], row["state"], row["by"]) == ("j", "save", "asked", "admin.token")
    [command] = rig.sent
    assert (command.node, command.verb, command.id) == ("n0", "save", row["id"])
    again = ticking(rig, lambda: api.post(PATH, headers=ASK | {"Host": "[::1]:9512"}))
    assert again.status_code == 409 and "is under way" in again.json()["error"]["got"]
    rig.store.answers = [Result("n0", row["id"], True, "armed 2 of 2 ranks")]
    fields = {
        "outcome": "saved",
        "request": row["id"],
        "step": "12",
        "path": "/c/12",
        "bytes": "5",
        "seconds": "1",
    }
    rig.fleet.event("n0", "checkpoint", "rank:j/0", origin="job", fields=fields)
    rig.tick()
    found = api.get(f"/api/v1/saves/{row['id']}").json()
    assert (found["state"], found["step"], found["nodes"]) == ("saved", 12, {"n0": "armed 2 of 2 ranks"})
    assert api.get("/api/v1/saves").json()["items"][0]["id"] == row["id"]
    assert api.get("/api/v1/jobs").json()["items"][0]["checkpoint"]["step"] == 12
    assert api.get("/api/v1/saves/nobody").status_code == 404


def test_an_unknown_job_and_a_bad_query_have_their_reasons(api, rig):
    answer = ticking(rig, lambda: api.post("/api/v1/jobs/nobody/restart?force=1", headers=ASK))
    assert answer.status_code == 409 and "nothing is known" in answer.json()["error"]["got"]
    assert api.post("/api/v1/jobs/j/restart?force=7", headers=ASK).status_code == 400


def test_a_brain_that_does_not_tick_is_said(api, monkeypatch):
    monkeypatch.setattr("gpuvigil_collector.web.app._ASK_S", 0.2)
    assert api.post(PATH, headers=ASK).status_code == 503


def test_goodput_of_a_job(api, rig):
    rig.tick(3)
    rows = api.get("/api/v1/goodput").json()["items"]
    assert [row["job"] for row in rows] == ["j"]
    one = api.get("/api/v1/goodput/j").json()
    assert one["seconds"].keys() >= {"useful", "init", "detect"} and one["checkpoint"]["saves"] == 0
    assert api.get("/api/v1/goodput/nobody").status_code == 404
    assert rig.fleet.now_ns > SECOND
