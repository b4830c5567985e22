"""Both units under a real systemd: ready, watchdog restart on a hang, clean stop."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest
from integration.systemd_host import SystemdHost, systemd_host

AGENT, COLLECTOR = "gpuvigil-agent.service", "gpuvigil-collector.service"
WATCHDOG_S = 6
CONFIGS = {
    "agent.toml": '[gpu]\nsource = "simulated"\n[simulate]\ngpus = 2\nhost = false\n',
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
FORGED = "NVRM: Xid (PCI:0000:01:00): 79, pid=1, name=x, GPU has fallen off the bus."
READ = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
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


def get(host: SystemdHost, url: str) -> str:
    return host.run("/usr/bin/python3", "-c", READ, url).stdout


def test_lines_forged_in_the_real_journal_open_nothing(host: SystemdHost) -> None:
    """By logger in the kernel's facility, as root and as nobody, and by a unit named like the kernel."""
    host.wait(AGENT, "ActiveState", "active", 60)
    deadline = time.monotonic() + 60
    while "gpuvigil_agent_kernel_log_up" not in (metrics := get(host, "http://127.0.0.1:9510/metrics")):
        assert time.monotonic() < deadline, metrics[:2000] + host.journal(AGENT)
        time.sleep(0.5)
    assert re.search(r"^gpuvigil_agent_kernel_log_up\{.*\} 1", metrics, re.M), (
        "nobody reads: nothing is tested"
    )
    host.run("logger", "-p", "kern.emerg", "-t", "kernel", FORGED)
    host.run("setpriv", "--reuid=65534", "--clear-groups", "logger", "-p", "kern.err", "-t", "kernel", FORGED)
    host.run("sh", "-c", f"echo '<0>{FORGED}' | systemd-cat -t kernel")
    found = host.run("journalctl", "--no-pager", "-o", "cat", "-g", "fallen off the bus").stdout
    assert found.count("Xid (PCI:0000:01:00): 79") >= 3, "the forgeries are not in the journal"
    time.sleep(5)  # a true one is an incident within 2 s
    assert not re.search(r"^gpuvigil_xid_total", get(host, "http://127.0.0.1:9510/metrics"), re.M)
    incidents = json.loads(get(host, "http://127.0.0.1:9512/api/v1/incidents"))["items"]
    assert [incident for incident in incidents if "gpu_lost" in incident["class"]] == []


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
