"""POST /api/v1/test-alert: under the same guard as every request, bounded, and shown."""

from __future__ import annotations

import httpx
import pytest
from unit.brain_help import Rig

from gpuvigil_cli.__main__ import main

ASK = {"X-Gpuvigil-Request": "1"}
PATH = "/api/v1/test-alert"


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Rig(tmp_path_factory.mktemp("state"))
    made.tick()
    return made


@pytest.fixture(scope="module")
def api(rig):
    token = {"Authorization": f"Bearer {rig.token}"}
    with rig.serve() as url, httpx.Client(base_url=url, trust_env=False, headers=token) as client:
        yield client


@pytest.mark.parametrize(("headers", "field"), [
    ({}, "X-Gpuvigil-Request"), ({"X-Gpuvigil-Request": "yes"}, "X-Gpuvigil-Request"),
    (ASK | {"Host": "evil.example:9512"}, "Host"),
])  # fmt: skip
def test_a_page_of_another_origin_sends_no_alert(api, rig, headers, field):
    answer = api.post(PATH, headers=headers)
    assert (answer.status_code, answer.json()["error"]["field"]) == (403, field)
    assert rig.alerting.trial.until_ns == 0


def test_without_a_token_none_is_sent(api, rig):
    url = str(api.base_url).rstrip("/") + PATH
    answer = httpx.post(url, headers=ASK, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["field"]) == (401, "authorization")
    assert rig.alerting.trial.until_ns == 0


def test_reading_sends_none(api):
    assert api.get(PATH).status_code == 405


@pytest.mark.parametrize("lasts", ["9s", "11min", "", "1", "1e9s", "10s; rm", "\x1b[2J"])
def test_a_time_out_of_bounds_is_refused_with_its_reason(api, rig, lasts):
    answer = api.post(PATH, params={"for": lasts}, headers=ASK)
    assert answer.status_code == 400 and answer.json()["error"]["field"] == "for"
    assert '"10s" to "600s"' in answer.json()["error"]["expected"]
    assert rig.alerting.trial.until_ns == 0


def ask(rig, api, lasts):
    file = rig.directory / "admin.token"
    return main(
        ["test-alert", "--url", str(api.base_url).rstrip("/"), "--for", lasts, "--token-file", str(file)]
    )


def test_it_is_asked_shown_and_the_command_says_where_to_look(rig, api, capsys):
    assert ask(rig, api, "20s") == 0
    said = capsys.readouterr().out
    assert "GpuvigilTestAlert holds for 20 s; mode rules" in said and "no Alertmanager is known" in said
    shown = api.get("/api/v1/alerting").json()
    assert shown["mode"] == "rules" and shown["replicas"] == []
    assert shown["test"]["holds"] is True and shown["test"]["alertmanagers"] == {}
    assert shown["silenced"] == {"nodes": {}, "incidents": {}, "read_ns": None, "fault": ""}


def test_a_time_that_the_collector_refuses_is_one_clear_line(rig, api, capsys):
    assert ask(rig, api, "9s") == 2
    assert "HTTP 400" in capsys.readouterr().err
