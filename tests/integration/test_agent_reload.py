"""SIGHUP with a link that cannot work: the live link goes on untouched, and metric and log say so."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import trustme
from integration.agent_collector import TestCollector, serving, until
from integration.agent_process import AgentProcess, make_agent  # noqa: F401 - a fixture
from integration.stack import free_port
from integration.test_agent_process import run_agent
from integration.test_agent_tls import identity, server_side

LIVE_S = 40
RELOAD_OK = "gpuvigil_agent_config_reload_ok{"
CONNECTS = 'gpuvigil_agent_stream_events_total{node="n1",what="connects"}'
Live = tuple[AgentProcess, TestCollector, trustme.CA]


@pytest_asyncio.fixture
async def live(make, tmp_path: Path) -> AsyncIterator[Live]:
    """An agent that streams over TLS."""
    authority, collector = trustme.CA(), TestCollector()
    async with serving(collector, credentials=server_side(authority)) as port:
        agent: AgentProcess = make(port, identity(tmp_path, authority, "n1"))
        agent.start()
        await until(lambda: collector.rows() >= 2, LIVE_S, "batches over TLS")
        yield agent, collector, authority


async def refused(agent: AgentProcess, collector: TestCollector, *words: str) -> None:
    """Reload, see the refusal, and see that the one link of before still delivers."""
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    await until(lambda: agent.metric(RELOAD_OK) == 0, LIVE_S, "the refusal")
    before = collector.rows()
    await until(lambda: collector.rows() >= before + 3, LIVE_S, "batches over the old link")
    assert agent.metric(CONNECTS) == 1, "the live link was dropped"
    assert collector.holes() == []
    line = next(line for line in agent.log.splitlines() if "reload_refused" in line)
    assert all(word in line for word in words), line
    assert "Traceback" not in agent.log


async def test_a_key_that_is_none(live: Live, tmp_path: Path) -> None:
    agent, collector, _ = live
    (tmp_path / "agent.key").write_text("no key")
    await refused(agent, collector, "tls.key: expected the key of")


async def test_a_key_of_another_certificate(live: Live, tmp_path: Path) -> None:
    agent, collector, authority = live
    authority.issue_cert("n1").private_key_pem.write_to_path(tmp_path / "agent.key")
    await refused(agent, collector, "tls.key: expected the key of", "another key")


async def test_an_identity_that_the_collector_does_not_trust(live: Live, tmp_path: Path) -> None:
    agent, collector, _ = live
    ca = (tmp_path / "ca.pem").read_bytes()
    identity(tmp_path, trustme.CA(), "n1")
    (tmp_path / "ca.pem").write_bytes(ca)
    await refused(agent, collector, "new link: expected a welcome at 127.0.0.1:")


async def test_an_address_where_nobody_listens_and_then_the_right_one(live: Live) -> None:
    agent, collector, _ = live
    good, nobody = agent.config.read_text(), free_port()
    old = good.partition('address = "127.0.0.1:')[2].partition('"')[0]
    agent.config.write_text(good.replace(f":{old}", f":{nobody}"))
    await refused(agent, collector, f"127.0.0.1:{nobody}", "refused")
    agent.config.write_text(good.replace('connect_timeout = "2s"', 'connect_timeout = "3s"'))
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    await until(lambda: agent.metric(RELOAD_OK) == 1, LIVE_S, "the good config")
    await until(lambda: agent.metric(CONNECTS) == 2, LIVE_S, "the new link")
    before = collector.rows()
    await until(lambda: collector.rows() >= before + 2 and not collector.holes(), LIVE_S, "batches")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("agent.key", "no key", ["tls.key: expected the key of"]),
        ("agent.key", None, ["tls.key: expected the key of", "another key"]),
        ("ca.pem", "no certificate", ["tls.ca: expected a PEM certificate"]),
    ],
)
def test_check_config_sees_files_that_do_not_fit(
    tmp_path: Path, file: str, text: str | None, words: list[str]
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(identity(tmp_path, trustme.CA(), "n1"))
    assert run_agent("--config", str(config), "--check-config").returncode == 0
    other = trustme.CA().issue_cert("n1").private_key_pem.bytes()
    (tmp_path / file).write_bytes(text.encode() if text is not None else other)
    done = run_agent("--config", str(config), "--check-config")
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert len(done.stderr.splitlines()) == 1
