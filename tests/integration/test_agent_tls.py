"""The agent's TLS: mutual, by files, renewed by SIGHUP without a lost batch; and the wrong certificate."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import trustme
from integration.agent_collector import TestCollector, serving, until
from integration.agent_process import AgentProcess, make_agent  # noqa: F401 - a fixture
from integration.test_agent_process import run_agent

LIVE_S = 30


def identity(folder: Path, authority: trustme.CA, node: str) -> str:
    """Write the three files and return the [tls] table."""
    certificate = authority.issue_cert(node)
    certificate.cert_chain_pems[0].write_to_path(folder / "agent.pem")
    certificate.private_key_pem.write_to_path(folder / "agent.key")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return f'[tls]\ncertificate = "{folder}/agent.pem"\nkey = "{folder}/agent.key"\nca = "{folder}/ca.pem"\n'


def server_side(authority: trustme.CA) -> grpc.ServerCredentials:
    certificate = authority.issue_cert("127.0.0.1")
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    return grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)


async def test_mutual_tls_and_renewal_by_sighup(make, tmp_path: Path) -> None:
    authority, collector = trustme.CA(), TestCollector()
    tls = identity(tmp_path, authority, "n1")
    async with serving(collector, credentials=server_side(authority)) as port:
        agent: AgentProcess = make(port, tls)
        process = agent.start()
        await until(lambda: collector.rows() >= 2, LIVE_S, "batches over TLS")
        connects = 'gpuvigil_agent_stream_events_total{node="n1",what="connects"}'
        identity(tmp_path, authority, "n1")
        process.send_signal(signal.SIGHUP)
        await until(lambda: agent.metric(connects) == 2, LIVE_S, "a new channel with the renewed files")
        before = collector.rows()
        await until(lambda: collector.rows() >= before + 2 and not collector.holes(), LIVE_S, "batches again")
        assert collector.hellos[0].node == "n1"


async def test_the_wrong_authority_never_gets_data_and_the_agent_goes_on(make, tmp_path: Path) -> None:
    collector = TestCollector()
    tls = identity(tmp_path, trustme.CA(), "n1")
    async with serving(collector, credentials=server_side(trustme.CA())) as port:
        agent: AgentProcess = make(port, tls)
        agent.start()
        await until(lambda: agent.metric("gpuvigil_agent_stream_failures_total") >= 1, LIVE_S, "a failure")
        await until(lambda: agent.metric("gpuvigil_agent_ledger_spooled_sequences") >= 3, LIVE_S, "spooled")
        assert collector.hellos == []
        assert agent.metric("gpuvigil_agent_stream_up{") == 0


def test_the_certificate_s_name_is_the_node_and_another_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(f'node = "n2"\n{identity(tmp_path, trustme.CA(), "n1")}')
    done = run_agent("--config", str(file), "--check-config")
    assert done.returncode == 1 and "n1" in done.stderr and "n2" in done.stderr
    (tmp_path / "agent.pem").write_text("no certificate")
    done = run_agent("--config", str(file), "--check-config")
    assert done.returncode == 1 and "tls.certificate: expected a PEM certificate" in done.stderr
