"""The client against a server that is slow, broken or lies: each ends as the error that says so."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuvigil_collector.action import Action, AmbiguousError, Fence, Proposal, RefusedError
from gpuvigil_collector.actuators.kubernetes import KubernetesActuator
from gpuvigil_collector.kube import api as kube_api
from gpuvigil_collector.kube.api import Deadline, KubeApi, LostError, StatusError, UnsentError, connection
from gpuvigil_collector.kube.objects import Node, NodePage, node_path
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_protos.settings import ConfigError

NODE = {"metadata": {"name": "n1", "resourceVersion": "5"}, "spec": {}, "status": {}}
CONFIG = """apiVersion: v1
clusters: [{{name: c, cluster: {{server: "{server}"}}}}]
users: [{{name: u, user: {user}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""


class Liar:
    """A server that answers each method with what the test wants."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {"GET": (200, json.dumps(NODE).encode())}
        self.headers: dict[str, str] = {}
        self.drip_s, self.seen = 0.0, list[str]()
        liar = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                liar.seen.append(self.command)
                code, body = liar.answers[self.command]
                self.send_response(code)
                for name, value in {"Content-Length": str(len(body)), **liar.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for at in range(0, len(body), 8 if liar.drip_s else max(1, len(body))):
                    self.wfile.write(body[at : at + (8 if liar.drip_s else len(body))])
                    time.sleep(liar.drip_s)

            do_GET = do_PATCH = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def client(tmp_path: Path, server: str, call_s: float = 1.0) -> KubeApi:
    path = tmp_path / "kubeconfig"
    path.write_text(CONFIG.format(server=server, user="{token: t}"))
    return KubeApi(connection(str(path)), call_s=call_s)


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"\xff\xfe", b'{"metadata": 5}', b'{"metadata": {"name": 7}}', b"<html>",
     b'{"metadata": {"name": "n1"}, "spec": {"taints": "none"}}', b"[" * 100_000],
)  # fmt: skip
def test_nonsense_is_lost_and_names_what_was_expected(tmp_path: Path, liar: Liar, body: bytes) -> None:
    liar.answers["GET"] = (200, body)
    with pytest.raises(LostError, match="cannot be understood"):
        client(tmp_path, liar.url).get(node_path("n1"), Node, Deadline(5))


@pytest.mark.parametrize(
    ("code", "certain"),
    [
        *((code, True) for code in (302, 400, 403, 409, 429)),
        *((code, False) for code in (408, 500, 503, 504)),
    ],
)
def test_a_status_says_whether_it_is_certain(tmp_path: Path, liar: Liar, code: int, certain: bool) -> None:
    liar.answers["GET"] = (code, json.dumps({"message": "no\x1b[31m"}).encode())
    liar.headers = {"Retry-After": "7"}
    with pytest.raises(StatusError) as caught:
        client(tmp_path, liar.url).get(node_path("n1"), Node, Deadline(5))
    assert (caught.value.code, caught.value.certain, caught.value.retry_s) == (code, certain, 7.0)
    assert "\x1b" not in str(caught.value)


def test_a_dripping_answer_ends_with_the_deadline(tmp_path: Path, liar: Liar) -> None:
    liar.drip_s, start = 0.3, time.monotonic()
    with pytest.raises(LostError, match="slowly"):
        client(tmp_path, liar.url).get(node_path("n1"), Node, Deadline(5))
    assert time.monotonic() - start < 5


def test_an_answer_without_end_is_refused(
    tmp_path: Path, liar: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_api, "_ANSWER_BYTES_MAX", 1000)
    liar.answers["GET"] = (200, b" " * 2000)
    with pytest.raises(LostError, match="1000 bytes"):
        client(tmp_path, liar.url).get(node_path("n1"), Node, Deadline(5))


def test_pages_that_never_end_are_refused(tmp_path: Path, liar: Liar) -> None:
    liar.answers["GET"] = (200, json.dumps({"items": [NODE], "metadata": {"continue": "again"}}).encode())
    with pytest.raises(kube_api.KubeError, match="at most 50"):
        list(client(tmp_path, liar.url).items("/api/v1/nodes", NodePage, Deadline(20), 50))


def test_nobody_there_is_unsent(tmp_path: Path) -> None:
    with pytest.raises(UnsentError):
        client(tmp_path, "http://127.0.0.1:1").get(node_path("n1"), Node, Deadline(5))


def held(place: str = "n1") -> Action:
    proposal = Proposal(id="a", case="c", incident="I", fault_class="f", playbook="p", step=1, kind="hold",
                        node=place, reason="r", deadline_s=3)  # fmt: skip
    return Action(proposal=proposal, state="intended")


def fence() -> Fence:
    return Fence(holder="c", generation=1, until_ns=time.time_ns() + 60 * 10**9)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((500, b"{}"), AmbiguousError),
        ((504, b"{}"), AmbiguousError),
        ((200, b"<html>"), AmbiguousError),
        ((403, b"{}"), RefusedError),
        ((422, b"{}"), RefusedError),
        ((429, b"{}"), RefusedError),
        ((409, b"{}"), RefusedError),
    ],
)
def test_r4_what_a_write_ends_as(
    tmp_path: Path, liar: Liar, answer: tuple[int, bytes], error: type[Exception]
) -> None:
    liar.answers |= {"PATCH": answer, "POST": (201, b"{}")}
    act = KubernetesActuator(client(tmp_path, liar.url), KubernetesSettings())
    with pytest.raises(error):
        act.apply(held(), fence())
    assert liar.seen.count("PATCH") == (5 if answer[0] == 409 else 1), "only a lost race is tried again"


def test_r4_reads_that_fail_before_a_write_are_refusals(tmp_path: Path, liar: Liar) -> None:
    act = KubernetesActuator(client(tmp_path, liar.url), KubernetesSettings())
    for answer in [
        (500, b"{}"),
        (404, b"{}"),
        (200, b"?"),
        (200, json.dumps({"metadata": {"name": "n2"}}).encode()),
    ]:
        liar.answers["GET"] = answer
        assert act.look(held()).state == "unknown"
        with pytest.raises(RefusedError):
            act.apply(held(), fence())
    assert set(liar.seen) == {"GET"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "apiVersion: v1", CONFIG.format(server="x", user="{exec: {apiVersion: v1, command: x}}")],
)
def test_o4_a_bad_kubeconfig_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"kubernetes\.kubeconfig"):
        connection(str(path))
    with pytest.raises(ConfigError, match="none"):
        connection(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "cluster",
    [
        'server: "http://["',
        'server: "http://10.0.0.1:8080"',
        'server: "https://x", certificate-authority: gone.pem',
        'server: "https://x", certificate-authority-data: bm8=',
    ],
)
def test_o4_a_bad_address_or_certificate_is_named(tmp_path: Path, cluster: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(CONFIG.format(server="CLUSTER", user="{token: t}").replace('server: "CLUSTER"', cluster))
    with pytest.raises(ConfigError, match=r"kubernetes\.kubeconfig"):
        KubeApi(connection(str(path)))
