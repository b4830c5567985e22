"""The agent's process and its operator: wrong config, taken ports, reload, the end, and its own metrics."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from integration.agent_collector import TestCollector, serving, until
from integration.agent_process import ended, make_agent  # noqa: F401 - a fixture
from integration.stack import environment

LIVE_S = 30
RELOAD_OK = "gpuvigil_agent_config_reload_ok{"


def run_agent(*arguments: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "gpuvigil_agent", *arguments)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[colector]\n", ['unknown key "colector"', 'did you mean "collector"']),
        ("[spool]\nsize_maks = '1GiB'\n", ['unknown key "spool.size_maks"', 'did you mean "size_max"']),
        ("[spool]\nsize_max = '10GB'\n", ["spool.size_max", "GiB", "'10GB'"]),
        ("[spool]\nsync_interval = 5\n", ["spool.sync_interval", "5"]),
        ("[collector]\naddress = 'collector.example:9511'\n", ["collector.address", "plain text", "tls"]),
        ("[collector]\naddress = '127.0.0.1'\n", ["collector.address", "host:port"]),
        ("node = 'a b\\u001b[31m'\n", ["node: expected letters"]),
        ("[tls]\ncertificate = '/nonexistent.pem'\n", ["tls"]),
        ("[gpu]\nsource = 'rocm'\n", ["gpu.source", "rocm"]),
        ("= 1", ["not valid TOML"]),
    ],
)
def test_wrong_config_is_one_line_that_says_what_and_where(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    done = run_agent("--config", str(file), "--check-config")
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert lines[0].isprintable()


def test_missing_config_file_is_named(tmp_path: Path) -> None:
    done = run_agent("--config", str(tmp_path / "none.toml"))
    assert (done.returncode, done.stderr) == (1, f"gpuvigil-agent: {tmp_path}/none.toml: no such file\n")


def test_check_config_prints_what_it_would_run_with_and_reads_it_back(tmp_path: Path) -> None:
    done = run_agent("--check-config", "--set", "node=n7", "--set", 'spool.size_max="64MiB"')
    assert done.returncode == 0, done.stderr
    assert 'node = "n7"' in done.stdout and 'size_max = "64MiB"' in done.stdout
    again = tmp_path / "agent.toml"
    again.write_text(done.stdout)
    assert run_agent("--config", str(again), "--check-config").stdout == done.stdout


def test_the_example_config_is_valid_and_holds_the_defaults() -> None:
    example = Path(__file__).parents[2] / "deploy/config/agent.toml"
    done = run_agent("--config", str(example), "--check-config")
    assert done.returncode == 0, done.stderr
    assert done.stdout == run_agent("--check-config").stdout


def test_taken_metrics_port_and_used_or_unwritable_state_are_clear_errors(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_agent("--set", f"state_directory={tmp_path}", "--set", f"metrics.address=127.0.0.1:{port}",
                         "--set", "gpu.source=none", "--set", "node=n1")  # fmt: skip
    assert done.returncode == 1
    assert "metrics.address" in done.stderr and "another process listens there" in done.stderr
    assert "Traceback" not in done.stderr
    file = tmp_path / "file"
    file.write_text("")
    done = run_agent("--set", f"state_directory={file}", "--set", "metrics.address=", "--set", "node=n1")
    assert done.returncode == 1 and "cannot be made" in done.stderr and "Traceback" not in done.stderr


async def test_reload_keeps_the_old_config_when_the_new_one_is_wrong(make) -> None:
    first, second = TestCollector(), TestCollector()
    async with serving(first) as port, serving(second) as other:
        agent = make(port)
        process = agent.start()
        await until(lambda: first.rows() >= 2, LIVE_S, "batches")
        good = agent.config.read_text()
        agent.config.write_text(good.replace("[collector]", "[colector]"))
        process.send_signal(signal.SIGHUP)
        await until(lambda: agent.metric(RELOAD_OK) == 0, LIVE_S, "refused reload")
        assert 'did you mean \\"collector\\"' in agent.log
        before = first.rows()
        await until(lambda: first.rows() > before, LIVE_S, "the old config goes on")
        agent.write(other, extra='log_level = "debug"')
        agent.config.write_text(agent.config.read_text() + "seed = 99\n")
        process.send_signal(signal.SIGHUP)
        await until(lambda: agent.metric(RELOAD_OK) == 1 and second.rows() >= 2, LIVE_S, "the new collector")
        assert "collector.address" in agent.log and "simulate.seed" in agent.log, "says what needs a restart"
        assert {hello.boot_id for hello in second.hellos} == {hello.boot_id for hello in first.hellos}


async def test_second_agent_on_the_same_state_is_refused_and_sigterm_ends_in_time(make) -> None:
    agent = make(1)  # nobody listens there: the end must not wait for a collector
    process = agent.start()
    await until(lambda: agent.metric("gpuvigil_agent_ticks_total") >= 2, LIVE_S, "ticks")
    done = run_agent("--config", str(agent.config), "--set", "metrics.address=")
    assert done.returncode == 1 and "another agent uses it" in done.stderr
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert await ended(process, 10) == 0
    assert time.monotonic() - started < 10


@pytest.mark.needs_prometheus
async def test_metrics_are_clean_for_promtool_and_name_no_reserved_label(make) -> None:
    agent = make(1)
    agent.start()
    await until(lambda: agent.metric("gpuvigil_gpu_power_watts") > 0, LIVE_S, "GPU readings")
    with urllib.request.urlopen(f"http://127.0.0.1:{agent.metrics_port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for name in ("job", "instance", "namespace", "pod", "container", "endpoint", "service"):
        assert f"{{{name}=" not in text and f",{name}=" not in text
    assert 'reason="gpu_idle"' in text and "gpuvigil_gpu_clocks_event_reasons" not in text
    assert "gpuvigil_gpu_info{" in text
