"""The helper's own unit under a real systemd: orders by its socket, units stopped, a reset by a script."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.helper_lab import AGENT_UID, BOOT_ID, CONFIG, DCGM, FILES, HELPER, JOB, SOCKET, Lab
from integration.systemd_host import systemd_host
from unit.helper_world import GPU, OTHER_GPU, write_keys

from gpuvigil_collector.actuators.helper import Signer

pytestmark = [pytest.mark.needs_systemd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("helper")
    write_keys(folder)
    configs = {"helper.toml": CONFIG, "collector.pub": (folder / "collector.pub").read_text()}
    with systemd_host(folder, [SOCKET, HELPER], configs, FILES) as host:
        host.wait(SOCKET, "ActiveState", "active", 60)
        yield Lab(host, Signer(folder / "collector.key"))


def test_it_is_ready_within_its_sandbox(lab: Lab) -> None:
    seen = lab.look()
    assert seen["boot_id"] == BOOT_ID.read_text().strip(), (
        "the kernel's own; nspawn shows another to the rest"
    )
    assert (seen["act"], seen["held"], seen["paused"]) == (True, "", "")
    lab.host.wait(HELPER, "ActiveState", "active", 30)


def test_s7_only_the_agents_user_is_heard(lab: Lab) -> None:
    """Not even root, and not with a sound order."""
    before = lab.did()
    message = lab.signed("reset_gpu", GPU)
    for uid in (0, 65534, AGENT_UID + 1):
        assert lab.say(message, uid) == {}
    assert lab.did() == before
    assert "connection_refused" in lab.host.journal(HELPER)


def test_s7_the_agents_rights_reach_nothing_else(lab: Lab) -> None:
    """What a hostile agent could try as its own user, beside orders: files, signals, systemd itself."""
    pid = lab.host.show(HELPER, "MainPID")
    tries = [
        "echo 'act = true' >> /etc/gpuvigil/helper.toml",
        "echo x > /etc/gpuvigil/collector.pub",
        "cat /var/lib/gpuvigil-helper/ledger.db",
        "rm -f /run/gpuvigil-helper/helper.sock && test ! -e /run/gpuvigil-helper/helper.sock",
        "mv /run/gpuvigil-helper /run/x",
        f"kill -9 {pid}",
        f"systemctl stop {HELPER}",
        f"systemctl stop {DCGM}",
        "systemctl reboot",
        "systemd-run --wait /opt/lab/reset x",
        f"test -r /proc/{pid}/environ",
    ]
    lab.host.run("systemctl", "start", DCGM)
    before = lab.did()
    for command in tries:
        user = ["setpriv", f"--reuid={AGENT_UID}", f"--regid={AGENT_UID}", "--clear-groups", "--no-new-privs"]
        assert lab.host.run(*user, "sh", "-c", command).returncode != 0, command
    assert lab.host.show(HELPER, "MainPID") == pid and lab.active(DCGM) and lab.did() == before


def test_s7_a_captured_order_of_another_node_or_key_is_refused_as_the_agent(lab: Lab) -> None:
    order = json.loads(lab.signed("reset_gpu", GPU))
    for changed in (
        order | {"order": order["order"].replace(GPU, OTHER_GPU)},
        order | {"order": order["order"].replace('"n1"', '"n2"')},
        order | {"signature": "00" * 64},
    ):
        assert lab.say(json.dumps(changed))["outcome"].startswith("signature: ")
    assert [line for line in lab.did() if line.startswith("reset")] == []


def test_the_agents_dynamic_user_is_known_by_its_name(lab: Lab) -> None:
    """As the agent's own unit runs: DynamicUser=yes, a number that only systemd knows."""
    lab.host.run(
        "sed", "-i", 's/^agent_user = .*/agent_user = "gpuvigil-agent"/', "/etc/gpuvigil/helper.toml"
    )
    lab.host.run("systemctl", "restart", HELPER)
    message = json.dumps({"ask": "look", "action": "", "unit": ""})
    dynamic = ["systemd-run", "--wait", "--pipe", "-q", "-p", "DynamicUser=yes", "-p", "User=gpuvigil-agent"]
    try:
        done = lab.host.run(*dynamic, "/usr/bin/python3", "/opt/lab/say.py", "-1", message)
        assert '"boot_id"' in done.stdout, done.stderr + lab.host.journal(HELPER)
        assert lab.say(message, AGENT_UID + 1) == {}
    finally:
        back = f's/^agent_user = .*/agent_user = "{AGENT_UID}"/'
        lab.host.run("sed", "-i", back, "/etc/gpuvigil/helper.toml")
        lab.host.run("systemctl", "restart", HELPER)


def test_a_real_unit_is_stopped_and_no_other(lab: Lab) -> None:
    lab.host.run("systemctl", "start", JOB)
    assert lab.look(unit=JOB)["unit"] == "active"
    lab.host.run("systemctl", "start", DCGM)
    assert lab.give("stop_unit", DCGM)["state"] == "refused" and lab.active(DCGM)
    said = lab.give("stop_unit", JOB, "s1")
    assert (said["state"], said["outcome"]) == ("done", f"{JOB} is inactive"), said
    assert not lab.active(JOB) and lab.look("s1", JOB)["effect"] == "done"


def test_a_reset_lets_the_holder_go_and_brings_it_back(lab: Lab) -> None:
    lab.host.run("systemctl", "start", DCGM)
    lab.host.wait(DCGM, "ActiveState", "active", 10)
    before = lab.host.show(DCGM, "MainPID")
    said = lab.give("reset_gpu", GPU, "r1")
    assert said["state"] == "done", said
    assert lab.did()[-2:] == [f"evidence {GPU}", f"reset {GPU}"]
    assert lab.active(DCGM) and lab.host.show(DCGM, "MainPID") != before
    assert not lab.active("dcgm-exporter.service")
    kept = lab.host.run("sh", "-c", "cat /var/lib/gpuvigil-helper/evidence/*").stdout
    assert "ECC 7" in kept and "r1 i-1" in kept
    assert lab.look("r1")["effect"] == "done"
    assert "limit of this node" in lab.give("reset_gpu", GPU)["outcome"]


def test_everybody_is_back_after_a_reset_that_failed(lab: Lab) -> None:
    lab.forget()
    lab.host.run("systemctl", "start", DCGM)
    lab.host.run("touch", "/opt/lab/fails")
    said = lab.give("reset_gpu", OTHER_GPU)
    lab.host.run("rm", "/opt/lab/fails")
    assert said["state"] == "failed", said
    assert lab.active(DCGM)


def test_no_reset_while_a_process_of_any_user_holds_the_device(lab: Lab) -> None:
    """Found by /proc within the sandbox: in another user's process and in a private mount namespace."""
    lab.forget()
    hold = "exec 9</opt/lab/nvidia0; exec sleep 300"
    lab.host.run(
        "systemd-run", "--unit=holder", "-p", "User=nobody", "-p", "PrivateTmp=yes", "sh", "-c", hold
    )
    lab.host.wait("holder.service", "ActiveState", "active", 10)
    lab.host.run("systemctl", "start", DCGM)
    said = lab.give("reset_gpu", GPU)
    lab.host.run("systemctl", "stop", "holder.service")
    assert said["state"] == "refused" and "1 processes hold" in said["outcome"], said
    assert [line for line in lab.did() if line.startswith("reset")] == []
    assert lab.active(DCGM), "who let go is back"


def test_s8_a_protected_unit_stops_every_interruption(lab: Lab) -> None:
    lab.forget()
    lab.host.run("systemctl", "start", "exam-1.service")
    for verb, target in (("reset_gpu", GPU), ("reboot", ""), ("stop_unit", JOB)):
        assert lab.give(verb, target)["outcome"] == "a protected job runs: exam-1.service"
    lab.host.run("systemctl", "stop", "exam-1.service")
    assert lab.did() == []


def test_a_reboot_is_begun_and_pending(lab: Lab) -> None:
    lab.forget()
    assert lab.give("reboot", action="b1")["state"] == "intended"
    time.sleep(0.5)
    assert lab.did() == ["reboot"] and lab.look("b1")["effect"] == "intended"


def test_s6_nonces_outlive_a_killed_helper(lab: Lab) -> None:
    message = lab.signed("hold")
    assert lab.say(message)["state"] == "done"
    lab.host.run("systemctl", "kill", "-s", "KILL", HELPER)
    assert lab.say(message)["outcome"] == "nonce: this order was seen before"
    assert int(lab.host.show(HELPER, "NRestarts")) >= 1 or lab.active(HELPER)
    assert lab.give("unhold")["state"] == "done"


def test_a_unit_can_heed_the_hold(lab: Lab) -> None:
    """ConditionPathExists on the helper's file: a held node starts no such job."""
    assert lab.give("hold")["state"] == "done"
    lab.host.run("systemctl", "start", JOB)
    assert not lab.active(JOB) and lab.look()["held"] == "i-1"
    assert lab.give("unhold")["state"] == "done"
    lab.host.run("systemctl", "start", JOB)
    assert lab.active(JOB)


def test_units_let_go_are_started_after_a_helper_killed_in_a_reset(lab: Lab, tmp_path: Path) -> None:
    """kill -9 while the reset runs: the reset is unknown, and what was let go is back."""
    lab.forget()
    lab.host.run("systemctl", "start", DCGM)
    lab.host.run("sh", "-c", "printf '#!/bin/sh\\ntouch /opt/lab/begun; sleep 8\\n' > /opt/lab/reset")
    message = lab.signed("reset_gpu", GPU, "k1")
    lab.host.run(
        "systemd-run", "--unit=asker", "/usr/bin/python3", "/opt/lab/say.py", str(AGENT_UID), message, "yes"
    )
    deadline = time.monotonic() + 30
    while lab.host.run("test", "-e", "/opt/lab/begun").returncode != 0:
        assert time.monotonic() < deadline, lab.host.journal("asker")
        time.sleep(0.1)
    assert not lab.active(DCGM)
    lab.host.run("systemctl", "kill", "-s", "KILL", HELPER)
    lab.host.wait(DCGM, "ActiveState", "active", 30)
    assert lab.look("k1")["effect"] == "unknown"
    assert "limit of this node" in lab.give("reset_gpu", GPU)["outcome"]


@pytest.mark.parametrize("file", ["/run/gpuvigil/pause", "/etc/gpuvigil/pause"])
def test_r10_a_pause_file_holds_at_once_and_over_a_restart(lab: Lab, file: str) -> None:
    lab.forget()
    lab.host.run("sh", "-c", f"mkdir -p /run/gpuvigil; echo ticket 9 > {file}")
    assert lab.give("stop_unit", JOB)["outcome"] == f"paused: {file}: ticket 9"
    lab.host.run("systemctl", "restart", HELPER)
    assert lab.give("reboot")["outcome"] == f"paused: {file}: ticket 9"
    lab.host.run("rm", file)
    assert lab.did() == []


def test_stop_is_clean(lab: Lab) -> None:
    lab.host.run("systemctl", "stop", SOCKET, HELPER, timeout_s=60)
    assert lab.host.show(HELPER, "Result") == "success"
