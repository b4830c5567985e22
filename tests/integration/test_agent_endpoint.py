"""The agent's metrics endpoint against clients that mean no good, and what it says in full."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.agent_collector import until
from integration.agent_process import AgentProcess, make_agent  # noqa: F401 - a fixture
from integration.stack import free_port

from gpuvigil_agent import metrics_server
from gpuvigil_agent.exposition import Family, Renderer
from gpuvigil_agent.metrics_server import HANDLERS_MAX, MetricsServer

LIVE_S = 30
IDLE = 300
THREADS_OF_A_BUSY_AGENT = 40


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def test_300_idle_connections_cost_few_threads_and_neither_ticks_nor_later_scrapes(make) -> None:
    agent: AgentProcess = make(free_port())
    process = agent.start()
    await until(lambda: agent.metric("gpuvigil_agent_ticks_total") >= 1, LIVE_S, "ticks")
    idle = [socket.create_connection(("127.0.0.1", agent.metrics_port), 10) for _ in range(IDLE)]
    try:
        most, deadline = 0, time.monotonic() + 3
        while time.monotonic() < deadline:
            most = max(most, threads_of(process.pid))
        assert most < THREADS_OF_A_BUSY_AGENT
        await until(
            lambda: agent.metric("gpuvigil_agent_scrapes_refused_total") >= IDLE - 100,
            LIVE_S,
            "a scrape among idle clients",
        )
        ticks = agent.metric("gpuvigil_agent_ticks_total")
        await until(lambda: agent.metric("gpuvigil_agent_ticks_total") > ticks, LIVE_S, "further ticks")
    finally:
        for client in idle:
            client.close()
    assert process.poll() is None
    assert "Traceback" not in agent.log


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    made = MetricsServer("127.0.0.1", 0, lambda: b"x 1\n" * 1000)
    made.start()
    yield made
    made.shutdown()
    made.server_close()


def fetch(server: MetricsServer, path: str = "/metrics", **headers: str) -> tuple[int, bytes]:
    url = f"http://127.0.0.1:{server.server_address[1]}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_clients_that_trickle_are_cut(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "TIMEOUT_S", 0.2)
    slow = [socket.create_connection(server.server_address, 10) for _ in range(HANDLERS_MAX)]
    deadline = time.monotonic() + 10
    while True:
        for client in slow:
            client.sendall(b"G")
        try:
            status, _ = fetch(server)
        except OSError:
            assert time.monotonic() < deadline, "clients that send a byte now and then hold every place"
            continue
        break
    assert status == 200
    for client in slow:
        client.close()


def test_no_thread_to_be_had_is_counted_and_the_next_scrape_is_served(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(threading.Thread, "start", refuse)
        fetch(server)
    assert server.refused == 1
    assert fetch(server)[0] == 200


def test_packed_or_plain_and_one_path(server: MetricsServer) -> None:
    plain = fetch(server)[1]
    assert gzip.decompress(fetch(server, **{"Accept-Encoding": "gzip"})[1]) == plain
    assert fetch(server, "/etc/passwd") == (404, b"")


HOSTILE = 'a"b\\c\nd{x="1"} 5'


def test_hostile_label_values_stay_in_their_line() -> None:
    family = Family("gpuvigil_x", "counter", "Text.\nMore", ("node", "device"), [(("n1", HOSTILE), 2.5)])
    renderer = Renderer()
    text = renderer.render([family])
    assert text == renderer.render([family]), "the kept head of a line says the same"
    assert text.decode() == (
        "# HELP gpuvigil_x_total Text.\\nMore\n# TYPE gpuvigil_x_total counter\n"
        'gpuvigil_x_total{device="a\\"b\\\\c\\nd{x=\\"1\\"} 5",node="n1"} 2.5\n'
    )
