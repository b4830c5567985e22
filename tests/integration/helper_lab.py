"""A booted host with the helper's own unit: its config, scripts in nvidia-smi's place, and its socket."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

from integration.systemd_host import SystemdHost

from gpuvigil_collector.actuators.helper import Signer
from gpuvigil_protos.order import Order

HELPER, SOCKET, JOB, DCGM = (
    "gpuvigil-helper.service",
    "gpuvigil-helper.socket",
    "train-a.service",
    "dcgm.service",
)
AGENT_UID = 4711
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CONFIG = f"""
act = true
node = "n1"
agent_user = "{AGENT_UID}"
[stop]
allow = 'train-[a-z]+\\.service'
[protected]
units = ["exam-*.service"]
[reset]
command = ["systemd-run", "--wait", "--pipe", "--collect", "--quiet", "/opt/lab/reset", "{{gpu}}"]
evidence = ["systemd-run", "--wait", "--pipe", "--collect", "--quiet", "/opt/lab/evidence", "{{gpu}}"]
links = ["true"]
let_go = ["{DCGM}", "dcgm-exporter.service"]
devices = ["/opt/lab/nvidia0"]
[reboot]
command = ["systemd-run", "--collect", "--quiet", "/opt/lab/reboot"]
"""
SLEEPER = "[Service]\nExecStart=/bin/sleep 1000\n"
FILES = {
    f"etc/systemd/system/{JOB}": SLEEPER + "[Unit]\nConditionPathExists=!/var/lib/gpuvigil-helper/held\n",
    "etc/systemd/system/exam-1.service": SLEEPER,
    # it holds the device, as a DCGM host engine holds every GPU
    f"etc/systemd/system/{DCGM}": "[Service]\nExecStart=/bin/sh -c 'exec 9</opt/lab/nvidia0; sleep 1000'\n",
    "opt/lab/nvidia0": "",
    "opt/lab/reset": '#!/bin/sh\necho "reset $*" >> /opt/lab/did\ntest ! -e /opt/lab/fails\n',
    "opt/lab/evidence": '#!/bin/sh\necho "evidence $*" >> /opt/lab/did\necho ECC 7\n',
    "opt/lab/reboot": '#!/bin/sh\necho reboot >> /opt/lab/did\n',
    "opt/lab/did": "",
    "opt/lab/say.py": """
import json, os, socket, sys
uid, message, lets_go = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3:] == ["yes"]
if uid >= 0:
    os.setgid(uid); os.setuid(uid)
link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link.settimeout(60)
link.connect("/run/gpuvigil-helper/helper.sock")
link.send(message)
while data := link.recv(8192):
    if b'"ask"' not in data:
        print(data.decode())
        break
    if b"let_go" in data:
        link.send(b"let go" if lets_go else b"no")
""",
}  # fmt: skip


class Lab:
    """A booted host with the helper, and the collector's key outside of it."""

    def __init__(self, host: SystemdHost, signer: Signer) -> None:
        self.host, self.signer = host, signer

    def signed(self, verb: str, target: str = "", action: str = "") -> str:
        order = Order(
            verb=verb, node="n1", target=target, action=action or f"a-{secrets.token_hex(4)}", incident="i-1",  # type: ignore[arg-type]
            nonce=secrets.token_hex(16), number=self.signer.number(), generation=1,
            expires_ns=time.time_ns() + 60_000_000_000,
        )  # fmt: skip
        text, signature = self.signer.sign(order)
        return json.dumps({"ask": "order", "order": text, "signature": signature})

    def say(self, message: str, uid: int = AGENT_UID, lets_go: str = "yes") -> dict:
        done = self.host.run("/usr/bin/python3", "/opt/lab/say.py", str(uid), message, lets_go, timeout_s=90)
        assert done.stdout or uid != AGENT_UID, done.stderr + self.host.journal(HELPER)
        return json.loads(done.stdout) if done.stdout else {}

    def give(self, verb: str, target: str = "", action: str = "", **more: str) -> dict:
        return self.say(self.signed(verb, target, action), **more)

    def look(self, action: str = "", unit: str = "") -> dict:
        return self.say(json.dumps({"ask": "look", "action": action, "unit": unit}))

    def did(self) -> list[str]:
        return self.host.run("cat", "/opt/lab/did").stdout.splitlines()

    def active(self, unit: str) -> bool:
        return self.host.show(unit, "ActiveState") == "active"

    def forget(self) -> None:
        """Let an hour pass in the helper's ledger, and empty the scripts' own."""
        text = "import sqlite3; d = sqlite3.connect('/var/lib/gpuvigil-helper/ledger.db'); "
        text += "d.execute('UPDATE effects SET at_ns = 0, up_ns = -9000000000000000'); d.commit()"
        assert self.host.run("/usr/bin/python3", "-c", text).returncode == 0
        self.host.run("sh", "-c", ": > /opt/lab/did")
