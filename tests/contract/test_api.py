"""The API of version 1, over a real server: shapes, pages, and what a hostile client gets."""

from __future__ import annotations

import http.client
import math
import ssl
from dataclasses import replace

import httpx
import pytest
import trustme
from unit.brain_help import Rig, ledger_row
from unit.incident_help import finding

from gpuvigil_protos.settings import ConfigError

INCIDENT = {"id", "fingerprint", "class", "scope", "severity", "state", "node", "target", "cause"}
INCIDENT |= {"opened_ns", "seen_ns", "resolved_ns", "findings"}
FINDING = {"detector", "rule", "entity", "class", "severity", "role", "origin", "start_ns", "end_ns"}
FINDING |= {"sentence", "metric", "score", "evidence"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("state"), nodes=3, gpus=2)
    rig.fleet.set("gpu_temperature_celsius", "n0/gpu:GPU-n0-0", 61.0)
    rig.fleet.set("gpu_power_watts", "n0/gpu:GPU-n0-0", math.nan)
    rig.fleet.advance()
    rig.fleet.node("n2", connected=False)
    rig.rules.findings = [
        finding("gpu_lost", "n1/gpu:GPU-n1-1", score=math.inf),
        finding("nic_down", "n2/interface:eth0", severity="warning"),
    ]
    rig.store.rows = [ledger_row(f"n{i}", name) for i in range(3) for name in ("metrics", "events")]
    rig.tick()
    rig.rules.findings.pop()
    for _ in range(32):
        rig.tick()
    return rig


@pytest.fixture(scope="module")
def api(rig):
    with rig.serve() as url, httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
        yield client


def get(api, path, status=200, **query):
    answer = api.get(path, params=query)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def test_health(api):
    health = get(api, "/api/v1/health")
    assert health["version"] == 1 and health["state"] == "ok" and health["learning_until_ns"] is None
    assert (health["nodes"], health["nodes_up"], health["gpus"], health["incidents_open"]) == (3, 2, 6, 1)
    assert any("one failure domain" in line for line in health["detail"])
    assert health["started_ns"] < health["now_ns"]


def test_health_tells_old_losses_without_crying(api, rig):
    rows = rig.store.rows
    try:
        rig.store.rows = [ledger_row("n0", gap_sequences=7, refused={"bad_crc": 2})]
        health = get(api, "/api/v1/health")
        assert health["state"] == "ok"
        told = " / ".join(health["detail"])
        assert "7 sequences never arrived, none in the last 10 min" in told
        assert "2 messages were refused, none in the last 10 min" in told
        assert b"gpuvigil_collector_healthy 1.0" in api.get("/metrics").content
    finally:
        rig.store.rows = rows


def test_health_tells_what_wiring_knows(api, rig):
    rig.faults = ["1 of 1 ingest workers are down"]
    try:
        health = get(api, "/api/v1/health")
        assert health["state"] == "degraded" and health["detail"][0] == rig.faults[0]
    finally:
        rig.faults = []


def test_health_says_until_when_it_learns(api, rig):
    before = rig.pipeline.view
    until_ns = before.now_ns + 10**10
    rig.pipeline.view = replace(before, learning={"learning_until_ns": until_ns})
    try:
        health = get(api, "/api/v1/health")
        assert health["state"] == "learning" and health["learning_until_ns"] == until_ns
    finally:
        rig.pipeline.view = before


def test_nodes_and_gpus(api):
    nodes = get(api, "/api/v1/nodes")["items"]
    assert [(row["node"], row["state"], row["incidents_open"]) for row in nodes] == [
        ("n0", "up", 0), ("n1", "up", 1), ("n2", "silent", 0)]  # fmt: skip
    assert {"gpus", "gpus_expected", "last_seen_ns", "agent_version", "gpu_source", "note"} <= nodes[0].keys()
    gpus = get(api, "/api/v1/gpus")["items"]
    assert [(row["node"], row["gpu"], row["state"]) for row in gpus][:4] == [
        ("n0", 0, "ok"), ("n0", 1, "ok"), ("n1", 0, "ok"), ("n1", 1, "lost")]  # fmt: skip
    assert gpus[0]["metrics"] == {"gpu_temperature_celsius": 61.0}, "what is absent is left out, never 0"
    assert gpus[1]["metrics"] == {}


def test_incidents_list_and_whole(api):
    (one,) = get(api, "/api/v1/incidents")["items"]
    assert one.keys() >= INCIDENT and one["class"] == "gpu_lost" and one["target"] == "n1/gpu:GPU-n1-1"
    (done,) = get(api, "/api/v1/incidents", state="resolved")["items"]
    assert done["class"] == "nic_down" and done["resolved_ns"] > done["opened_ns"]
    assert len(get(api, "/api/v1/incidents", state="all")["items"]) == 2
    assert get(api, "/api/v1/incidents", state="all", since_ns=one["opened_ns"] + 1)["items"] == []
    whole = get(api, f"/api/v1/incidents/{one['id']}")
    (found,) = whole["findings"]
    assert whole["version"] == 1 and found.keys() >= FINDING and found["role"] == "cause"
    assert found["score"] is None, "infinity is not JSON"
    assert whole["journal"][0]["what"] == "opened" and "GPU-hours" in whole["journal"][0]["detail"]


def test_ledger_and_pages_that_hold_still(api):
    seen, cursor = [], None
    for _ in range(10):
        page = get(api, "/api/v1/ledger", limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [(row["node"], row["class"]) for row in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 6 and seen == sorted(seen)


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("nodes", {"limit": "0"}, "limit"),
        ("nodes", {"limit": "1001"}, "limit"),
        ("nodes", {"limit": "٣"}, "limit"),
        ("nodes", {"limit": "9" * 5000}, None),
        ("nodes", {"limt": "1"}, "limt"),
        ("nodes", {"cursor": "../../etc/passwd"}, "cursor"),
        ("nodes", {"cursor": "WzFd"}, "cursor"),  # [1]: a number where a name is
        ("nodes", {"cursor": "W1tdXQ=="}, "cursor"),
        ("nodes", {"<script>": "\x1b[31m"}, "<script>"),
        ("incidents", {"state": "opened"}, "state"),
        ("incidents", {"since_ns": "-1"}, "since_ns"),
        ("incidents", {"since_ns": str(2**70)}, "since_ns"),
        ("health", {"x": "1"}, "x"),
    ],
)
def test_a_bad_query_is_told_which_field_and_why(api, path, query, field):
    answer = api.get(f"/api/v1/{path}", params=query)
    if field is None:
        assert answer.status_code == 414
        return
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["field"] == field and error["expected"] and error["got"].isprintable()
    assert len(answer.content) < 500


def test_a_parameter_given_twice_is_refused(api):
    assert api.get("/api/v1/nodes?limit=1&limit=2").json()["error"]["field"] == "limit"


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/api/v1/incidents/zz", "/api/v1/incidents/..%2f..", "/api/v2/nodes", "/api/v1/nodes/"],
)
def test_unknown_paths_are_json_404(api, path):
    assert api.get(path).status_code == 404
    assert "error" in api.get(path).json()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/api/v1/nodes", "/metrics", "/", "/nowhere"])
def test_nothing_but_reading(api, method, path):
    answer = api.request(method, path)
    if method == "POST" and path.startswith("/api/"):  # not for a page of another origin
        assert answer.status_code == 403 and answer.json()["error"]["field"] == "X-Gpuvigil-Request"
        answer = api.request(method, path, headers={"X-Gpuvigil-Request": "1"})
        assert answer.status_code == 405
        return
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"


def test_head_has_no_body_and_every_answer_has_the_headers(api):
    head = api.head("/api/v1/nodes")
    assert head.status_code == 200 and head.content == b""
    for answer in (head, api.get("/"), api.get("/metrics"), api.get("/nowhere"), api.post("/")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_liveness(api, rig):
    assert get(api, "/healthz") == {"version": 1, "alive": True}
    rig.alive = False
    assert get(api, "/healthz", status=503)["alive"] is False
    rig.alive = True


def test_garbage_on_the_wire_is_refused_and_the_next_client_is_served(api):
    host, port = api.base_url.host, api.base_url.port
    endless = b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n"
    for request in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", endless):
        raw = http.client.HTTPConnection(host, port, timeout=5)
        raw.connect()
        raw.sock.sendall(request + b"\r\n\r\n")
        assert b"Traceback" not in raw.sock.recv(10_000)
        raw.close()
    assert get(api, "/api/v1/health")["version"] == 1


def test_a_bug_of_ours_shows_no_traceback(rig, tmp_path):
    broken = Rig(tmp_path)
    broken.store.ledger = lambda: 1 / 0
    with broken.serve() as url:
        answer = httpx.get(f"{url}/api/v1/health", trust_env=False, timeout=10)
    assert answer.status_code == 500 and "Zero" not in answer.text and "Traceback" not in answer.text


def test_a_journal_that_cannot_be_read_is_said(rig, tmp_path):
    broken = Rig(tmp_path)
    broken.rules.findings = [finding("gpu_lost", "n1/gpu:GPU-n1-1")]
    (id_,) = broken.tick().open
    for file in tmp_path.glob("journal.sqlite*"):
        file.unlink()
    with broken.serve() as url:
        answer = httpx.get(f"{url}/api/v1/incidents/{id_}", trust_env=False, timeout=10)
    assert answer.status_code == 503 and answer.json()["error"]["field"] == "journal"


def pem(path, *blobs):
    path.write_bytes(b"".join(blob.bytes() for blob in blobs))
    return str(path)


def test_with_tls_a_reader_needs_a_certificate_of_the_ca(rig, tmp_path):
    ca, stranger = trustme.CA(), trustme.CA()
    ca_file = pem(tmp_path / "ca.pem", ca.cert_pem)
    ours = ca.issue_cert("127.0.0.1")
    files = {
        "certificate": pem(tmp_path / "server.pem", *ours.cert_chain_pems),
        "key": pem(tmp_path / "server.key", ours.private_key_pem),
        "ca": ca_file,
    }
    with rig.serve(**files) as url:
        for issuer, served in ((ca, True), (stranger, False), (None, False)):
            context = ssl.create_default_context(cafile=ca_file)
            if issuer is not None:
                issuer.issue_cert("prometheus").configure_cert(context)
            with httpx.Client(verify=context, trust_env=False, timeout=10) as client:
                if served:
                    assert client.get(f"{url}/api/v1/health").json()["version"] == 1
                else:
                    with pytest.raises(httpx.TransportError):
                        client.get(f"{url}/api/v1/health")
        old = ssl.create_default_context(cafile=ca_file)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with httpx.Client(verify=old, trust_env=False, timeout=10) as client:
            with pytest.raises(httpx.TransportError):
                client.get(f"{url}/api/v1/health")


def test_tls_files_that_are_no_certificate_are_one_clear_line(rig, tmp_path):
    for name in ("certificate", "key", "ca"):
        (tmp_path / name).write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"web\.tls: the files are not"):
        with rig.serve(**{name: str(tmp_path / name) for name in ("certificate", "key", "ca")}):
            pass
