"""Both units under a real systemd: ready, watchdog restart on a hang, clean stop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from integration.systemd_host import SystemdHost, systemd_host

AGENT, COLLECTOR = "gpuvigil-agent.service", "gpuvigil-collector.service"
WATCHDOG_S = 6
CONFIGS = {
    "agent.toml": '[gpu]\nsource = "simulated"\n[simulate]\ngpus = 2\n',
    "collector.toml": 'state_directory = "/var/lib/gpuvigil-collector"\n',
}
WAIT_FOR_NODE = """
import json, sys, time, urllib.request
for _ in range(60):
    try:
        nodes = json.load(urllib.request.urlopen("http://127.0.0.1:9512/api/v1/nodes", timeout=5))["items"]
        if any(node["state"] == "up" and node["gpus"] == 2 for node in nodes):
            sys.exit(0)
    except OSError:
        pass
    time.sleep(0.5)
sys.exit(1)
"""
pytestmark = [pytest.mark.needs_systemd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdHost]:
    """A host that runs both units, with a shorter watchdog so that a hang is seen in seconds."""
    with systemd_host(tmp_path_factory.mktemp("systemd"), [AGENT, COLLECTOR], CONFIGS) as running:
        for unit in (AGENT, COLLECTOR):
            folder = f"/etc/systemd/system/{unit}.d"
            text = f"[Service]\\nWatchdogSec={WATCHDOG_S}\\n"
            running.run("sh", "-c", f"mkdir -p {folder} && printf '{text}' > {folder}/watchdog.conf")
        running.run("systemctl", "daemon-reload")
        running.run("systemctl", "restart", COLLECTOR, AGENT, timeout_s=120)
        yield running


@pytest.mark.parametrize("unit", [COLLECTOR, AGENT])
def test_unit_becomes_ready_and_says_what_it_does(host: SystemdHost, unit: str) -> None:
    """READY=1 was sent, and STATUS has words for `systemctl status`."""
    host.wait(unit, "ActiveState", "active", 60)
    assert host.show(unit, "Type") == "notify"
    assert host.show(unit, "StatusText") != ""


def test_agent_streams_to_the_collector(host: SystemdHost) -> None:
    """The two units reach each other over loopback inside their sandboxes."""
    done = host.run("/usr/bin/python3", "-c", WAIT_FOR_NODE, timeout_s=60)
    assert done.returncode == 0, host.journal(AGENT) + host.journal(COLLECTOR)


@pytest.mark.parametrize("unit", [AGENT, COLLECTOR])
def test_a_hang_is_ended_by_the_watchdog(host: SystemdHost, unit: str) -> None:
    """A stopped main process sends no WATCHDOG=1: systemd ends it and starts it again."""
    host.wait(unit, "ActiveState", "active", 60)
    before = int(host.show(unit, "NRestarts"))
    pid = host.show(unit, "MainPID")
    host.run("kill", "-STOP", pid)
    host.wait(unit, "NRestarts", str(before + 1), WATCHDOG_S * 3 + 30)
    host.wait(unit, "ActiveState", "active", 60)
    assert host.show(unit, "MainPID") != pid
    assert "watchdog" in host.run("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout.lower()


@pytest.mark.parametrize("unit", [AGENT, COLLECTOR])
def test_stop_is_clean_and_prompt(host: SystemdHost, unit: str) -> None:
    """SIGTERM ends the unit by its own exit, status 0, no process left."""
    host.wait(unit, "ActiveState", "active", 60)
    host.run("systemctl", "stop", unit, timeout_s=60)
    host.wait(unit, "ActiveState", "inactive", 30)
    assert host.show(unit, "Result") == "success"
    assert host.show(unit, "ExecMainStatus") == "0"
    assert host.run("systemctl", "show", "-P", "ControlGroup", unit).stdout.strip() == ""
    host.run("systemctl", "start", unit, timeout_s=90)
