"""An agent that is refused, or that reaches nobody: says why in one line, waits, and goes on when it may."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from integration.agent_collector import until
from integration.agent_process import AgentProcess, make_agent  # noqa: F401 - a fixture
from integration.ingest_host import QUICK, Host
from integration.stack import free_port
from integration.test_agent_tls import identity
from msgspec.structs import replace

from gpuvigil_protos.settings import Tls

LIVE_S = 40
REFUSED = 'gpuvigil_agent_stream_state{node="n1",state="refused"}'
UP = 'gpuvigil_agent_stream_up{node="n1"}'
DURABLE = 'gpuvigil_agent_ledger_durable_sequences_total{class="metrics"'


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.status = ""

    def says(self, words: str) -> bool:
        """Take what came; tell whether the newest STATUS has these words."""
        while True:
            try:
                lines = self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return words in self.status
            self.status = next((line for line in lines if line.startswith("STATUS=")), self.status)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    other_end = Systemd(tmp_path / "notify")
    yield other_end
    other_end._socket.close()


def failures(agent: AgentProcess, code: str) -> float:
    return agent.metric(f'gpuvigil_agent_stream_failures_total{{code="{code}",node="n1"}}')


def lines_with(agent: AgentProcess, word: str) -> list[str]:
    return [line for line in agent.log.splitlines() if word in line]


async def test_a_certificate_of_another_name_is_refused_until_it_is_right(make, systemd, tmp_path: Path):
    authority = trustme.CA()
    server = tmp_path / "server"
    server.mkdir()
    identity(server, authority, "127.0.0.1")
    tls = Tls(key=f"{server}/agent.key", certificate=f"{server}/agent.pem", ca=f"{server}/ca.pem")
    port = free_port()
    agent: AgentProcess = make(port, identity(tmp_path, authority, "n1"))
    agent.start(NOTIFY_SOCKET=str(systemd.path))
    await until(lambda: agent.metric("gpuvigil_agent_stream_failures_total") >= 1, LIVE_S, "an attempt")
    identity(tmp_path, authority, "n2")  # a renewal that went wrong
    with Host(tmp_path / "collector", replace(QUICK, address=f"127.0.0.1:{port}", tls=tls)) as host:
        await until(lambda: failures(agent, "PERMISSION_DENIED") >= 3, LIVE_S, "refusals")
        assert (agent.metric(REFUSED), agent.metric(UP)) == (1, 0)
        await until(lambda: systemd.says(f"refused by 127.0.0.1:{port}"), LIVE_S, "the status")
        assert "the certificate must name this node" in systemd.status
        (line,) = lines_with(agent, "stream_refused")
        assert "PERMISSION_DENIED" in line and "expected a name of the certificate, got 'n1'" in line
        await host.counter("rejected_streams_total:wrong_name", 3)
        identity(tmp_path, authority, "n1")
        await until(lambda: agent.metric(UP) == 1, LIVE_S, "the stream with the right certificate")
        await until(lambda: agent.metric(DURABLE) >= 3, LIVE_S, "what waited is durable")
        await until(lambda: systemd.says("streaming to"), LIVE_S, "the status")
        assert agent.balanced()


async def test_a_second_agent_of_the_same_name_waits_for_the_first_one_s_end(make, systemd, tmp_path: Path):
    with Host(tmp_path / "collector") as host:
        port = int(host.address.rpartition(":")[2])
        first: AgentProcess = make(port)
        process = first.start()
        await until(lambda: first.metric(UP) == 1, LIVE_S, "the first agent")
        (tmp_path / "second").mkdir()
        second = AgentProcess(tmp_path / "second", port)
        twin = second.start(NOTIFY_SOCKET=str(systemd.path))
        try:
            await until(lambda: second.metric(REFUSED) == 1, LIVE_S, "the refusal")
            await until(lambda: systemd.says("another agent uses this node name"), LIVE_S, "the status")
            assert failures(second, "ALREADY_EXISTS") >= 4
            (line,) = lines_with(second, "stream_refused")
            assert "n1 streams already from" in line and "another agent uses this node name" in line
            assert first.metric(UP) == 1, "the first one is not disturbed"
            process.kill()
            process.wait(10)
            await until(lambda: second.metric(UP) == 1, LIVE_S, "the second agent")
            await until(lambda: second.metric(DURABLE) >= 3, LIVE_S, "its batches")
            assert second.balanced()
        finally:
            twin.kill()
            twin.wait(10)


async def test_nobody_at_the_address_is_said_once_and_in_words(make, systemd, tmp_path: Path):
    port = free_port()
    agent: AgentProcess = make(port)
    agent.start(NOTIFY_SOCKET=str(systemd.path))
    await until(lambda: failures(agent, "unreachable") >= 4, LIVE_S, "attempts")
    (line,) = lines_with(agent, "stream_lost")
    assert f"connection refused at 127.0.0.1:{port}" in line
    assert "TimeoutError" not in agent.log
    await until(lambda: systemd.says("connection refused"), LIVE_S, "the status")


async def test_a_port_that_takes_connections_and_never_speaks_is_said_in_words(make, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        agent: AgentProcess = make(silent.getsockname()[1])
        agent.start()
        await until(lambda: failures(agent, "unreachable") >= 2, LIVE_S, "attempts")
        assert "TimeoutError" not in agent.log
        assert f"at 127.0.0.1:{silent.getsockname()[1]}" in lines_with(agent, "stream_lost")[0]
