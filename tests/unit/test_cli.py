"""The operator's commands against a stub of the API: answers, hostile text, unreachable and wrong servers."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from gpuvigil_cli.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n[red]bold[/red]\u202e<script>alert(1)</script>\x00\u2028" + "A" * 65536
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
INCIDENT = {
    "id": "inc-1", "fingerprint": "f", "class": "gpu_lost", "scope": "gpu", "severity": "critical",
    "state": "open", "findings": 2, "node": "sim-03", "target": "sim-03/gpu:GPU-5d1b",
    "cause": "GPU 3 of sim-03 fell off the bus: Xid 79, and it left the inventory.",
    "opened_ns": 1_790_000_000_000_000_000, "seen_ns": 1_790_000_001_000_000_000, "resolved_ns": None,
}  # fmt: skip
FINDING = {
    "detector": "rules", "rule": "xid_79", "entity": "sim-03/gpu:GPU-5d1b", "class": "gpu_lost",
    "severity": "critical", "role": "cause", "origin": "driver", "start_ns": 1_790_000_000_000_000_000,
    "end_ns": 1_790_000_001_000_000_000, "sentence": "Xid 79 came from the driver.",
    "metric": "gpu_power_watts", "score": 7.25,
    "evidence": {"observed": 17.5, "expected": 698.0, "unit": "watts", "facts": {"pci": "0000:1b"}},
}  # fmt: skip


def health(state: str = "ok") -> dict:
    return {
        "version": 1, "state": state, "learning_until_ns": None, "started_ns": 1_790_000_000_000_000_000,
        "now_ns": 1_790_000_010_000_000_000, "nodes": 17, "nodes_up": 16, "gpus": 128, "incidents_open": 1,
        "detail": ["ingest worker 0 restarted"],
    }  # fmt: skip


def node(name: str, note: str = "") -> dict:
    return {
        "node": name, "state": "up", "gpus": 7, "gpus_expected": 8, "last_seen_ns": 1_790_000_000_000_000_000,
        "agent_version": "0.1.0", "gpu_source": "simulated", "note": note, "driver_version": "580.1",
        "incidents_open": 1,
    }  # fmt: skip


class Stub:
    """Answers of the API by path; a path with several pages has a list of them."""

    def __init__(self) -> None:
        self.answers: dict[str, object] = {}
        self.status = 200
        self.raw: bytes | None = None
        self.queries: list[dict[str, list[str]]] = []

    def answer(self, target: str) -> tuple[int, bytes]:
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        self.queries.append(query)
        if self.raw is not None:
            return self.status, self.raw
        found = self.answers.get(parts.path)
        if found is None:
            return 404, b'{"error": {}}'
        page = found[int(query.get("cursor", ["0"])[0])] if isinstance(found, list) else found
        return self.status, json.dumps(page).encode()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    made = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = made.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("GPUVIGIL_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("COLUMNS", "80")
    yield made
    server.shutdown()
    thread.join(timeout=5)
    server.server_close()


def page(*items: dict, following: int | None = None) -> dict:
    return {"version": 1, "items": list(items), "next": following}


def test_status_says_state_fleet_and_detail(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["/api/v1/health"] = health()
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "16 of 17 nodes up, 128 GPUs" in out
    assert "ingest worker 0 restarted" in out


def test_status_exits_1_when_degraded(stub: Stub) -> None:
    stub.answers["/api/v1/health"] = health("degraded")
    assert main(["status"]) == 1


def test_status_says_until_when_it_learns(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    learning = health("learning")
    learning["learning_until_ns"] = learning["now_ns"] + 90_000_000_000
    stub.answers["/api/v1/health"] = learning
    assert main(["status"]) == 0
    assert "1 min 30 s more" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("command", [["status"], ["nodes"], ["incidents"], ["why", "inc-1"]])
def test_json_is_one_object_and_nothing_else(
    stub: Stub, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stub.answers |= {
        "/api/v1/health": health(),
        "/api/v1/nodes": page(node("n1")),
        "/api/v1/incidents": page(INCIDENT),
        "/api/v1/incidents/inc-1": {"version": 1, **INCIDENT, "findings": [FINDING], "journal": []},
    }
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["version"] == 1
    assert captured.err == ""


def test_nodes_follows_the_cursor(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["/api/v1/nodes"] = [page(node("n1"), following=1), page(node("n2"))]
    assert main(["nodes", "--json"]) == 0
    assert [row["node"] for row in json.loads(capsys.readouterr().out)["items"]] == ["n1", "n2"]


def test_a_cursor_that_never_ends_ends(stub: Stub) -> None:
    stub.answers["/api/v1/nodes"] = [page(following=0)]
    assert main(["nodes"]) == 0
    assert len(stub.queries) == 1


def test_incidents_asks_for_open_ones_unless_all(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["/api/v1/incidents"] = page(INCIDENT)
    assert main(["incidents"]) == 0
    assert main(["incidents", "--all"]) == 0
    assert [query["state"] for query in stub.queries] == [["open"], ["all"]]
    assert "fell off the bus" in capsys.readouterr().out


def test_a_drill_is_said_to_be_one_wherever_its_incident_is_shown(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    for synthetic in (True, False):
        row = {**INCIDENT, "synthetic": synthetic}
        stub.answers["/api/v1/incidents"] = page(row)
        stub.answers["/api/v1/incidents/inc-1"] = {"version": 1, **row, "findings": [FINDING], "journal": []}
        for command in (["incidents"], ["why", "inc-1"]):
            assert main(command) == 0
            assert ("(drill)" in capsys.readouterr().out) is synthetic


def test_what_is_not_allowed_says_which_token_it_wants(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.status = 401
    refusal = {"field": "authorization", "expected": "the token of an operator", "got": "no token"}
    stub.raw = json.dumps({"error": refusal}).encode()
    assert main(["pause", "why"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "not allowed: expected the token of an operator, got no token" in said and "--token-file" in said


def test_help_names_every_command_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    words = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert {"run", "scan", "status", "jobs", "why", "demo", "pause"} <= words


def test_why_ranks_cause_first_and_shows_numbers(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    symptom = {**FINDING, "role": "symptom", "rule": "power_gone", "sentence": "Power is gone."}
    journal = [{"time_ns": 1_790_000_000_000_000_000, "what": "opened", "detail": "by rules"}]
    stub.answers["/api/v1/incidents/inc-1"] = {
        "version": 1, **INCIDENT, "findings": [symptom, FINDING], "journal": journal,
    }  # fmt: skip
    assert main(["why", "inc-1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(INCIDENT["cause"])
    assert out.index("1. cause: Xid 79") < out.index("2. symptom: Power is gone")
    for shown in ("observed: 17.5", "expected: 698", "pci: 0000:1b", "score 7.25", "opened  by rules"):
        assert shown in out


def test_why_of_an_unknown_incident_exits_1(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "inc-9"]) == 1
    assert "no incident inc-9" in capsys.readouterr().err


def test_why_refuses_an_id_that_would_change_the_path(stub: Stub) -> None:
    assert main(["why", "../health"]) == 2
    assert stub.queries == []


@pytest.mark.parametrize("command", [["status"], ["nodes"], ["incidents"], ["why", "inc-1"]])
def test_hostile_text_reaches_the_terminal_harmless(
    stub: Stub, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "600")  # wide enough that a table folds no word that is looked for
    bad = {key: HOSTILE if isinstance(value, str) else value for key, value in INCIDENT.items()}
    finding = {key: HOSTILE if isinstance(value, str) else value for key, value in FINDING.items()}
    finding["evidence"] = {HOSTILE: HOSTILE, "observed": HOSTILE, "facts": {HOSTILE: HOSTILE}}
    journal = [{"time_ns": HOSTILE, "what": HOSTILE, "detail": HOSTILE}]
    stub.answers |= {
        "/api/v1/health": {**health(HOSTILE), "detail": [HOSTILE], "gpus": HOSTILE},
        "/api/v1/nodes": page(dict.fromkeys(node("n"), HOSTILE)),
        "/api/v1/incidents": page(bad),
        "/api/v1/incidents/inc-1": {"version": 1, **bad, "findings": [finding], "journal": journal},
    }
    assert main(command) == 0
    out = capsys.readouterr().out
    assert CONTROL.findall(out.replace("\n", "")) == []
    assert "[red]bold[/red]" in out.replace("\n", ""), "markup is text, not colour"
    assert len(out) < 100_000


def test_hostile_error_text_is_cleaned(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.status, stub.raw = 500, HOSTILE.encode()
    assert main(["status"]) == 2
    assert CONTROL.findall(capsys.readouterr().err.rstrip("\n")) == []


@pytest.mark.parametrize("raw", [b"<html>nginx</html>", b"[]", b"", b'{"version": 2}', b"\xff\xfe"])
def test_what_is_not_our_api_is_named(stub: Stub, raw: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    stub.raw = raw
    assert main(["status"]) == 2
    err = capsys.readouterr().err
    assert "expected a gpuvigil collector's API version 1" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:9512", "http://", "http://a/b?c"])
def test_a_wrong_url_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url]) == 2
    assert "expected http://HOST:PORT" in capsys.readouterr().err


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    roots = os.pathsep.join(str(ROOT / name) for name in ("agent", "collector", "detectors", "protos"))
    return subprocess.run(
        [sys.executable, "-m", "gpuvigil.cli", *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": roots, **environment}, check=False,
    )  # fmt: skip


def test_no_collector_is_one_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    done = run_cli("status", GPUVIGIL_URL=url)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    for part in (url, "gpuvigil-collector --config", "gpuvigil demo", "GPUVIGIL_URL"):
        assert part in done.stderr


def test_a_wrong_command_exits_2_without_a_traceback() -> None:
    done = run_cli("sttus")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "sttus" in done.stderr


def test_no_colour_when_piped(stub: Stub) -> None:
    stub.answers["/api/v1/incidents"] = page(INCIDENT)
    done = run_cli("incidents", NO_COLOR="1")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert INCIDENT["cause"] in done.stdout
