"""Supervised jobs in the agent's real unit with its drop-in: they outlive a restart of the agent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from integration.systemd_host import ROOT, SOURCES, systemd_host

AGENT = "gpuvigil-agent.service"
pytestmark = [pytest.mark.needs_systemd, pytest.mark.timeout(300)]
CONFIG = (
    'node = "n1"\n[gpu]\nsource = "simulated"\n[simulate]\ngpus = 1\nhost = false\n'
    '[collector]\nbackoff_max = "1s"\n'
    '[supervisor.jobs.train]\ncommand = ["sh", "-c", "sleep 1000 & sleep 1000"]\ngrace = "1s"\n'
)
DRIVE = """
import asyncio, json, subprocess, sys, time
from pathlib import Path
from msgspec.structs import replace
from integration.ingest_host import QUICK, Host
from gpuvigil_collector.ingest.frames import Command

async def ask(host, name, verb, **arguments):
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        host.ingest.send(Command("n1", name, verb, arguments, time.time_ns() + 10**10))
        for _ in range(50):
            for result in host.store.results():
                if result.id == name:
                    return {"accepted": result.accepted, "outcome": result.outcome}
            await asyncio.sleep(0.05)
    return {"accepted": False, "outcome": "no answer"}

async def main():
    found = []
    with Host(Path("/tmp/collector"), replace(QUICK, address="127.0.0.1:9511")) as host:
        start = dict(job="train", action="a", generation="1", attempt="1")
        found.append(await ask(host, "c1", "supervise_start", **start))
        found.append(await ask(host, "c2", "supervise_look", job="train"))
        await asyncio.sleep(1)
        for how in (["restart"], ["kill", "--kill-whom=main", "-s", "KILL"]):
            subprocess.run(["systemctl", *how, "gpuvigil-agent.service"], check=True, timeout=60)
            await asyncio.sleep(4)
            found.append(await ask(host, "d" + how[0], "supervise_look", job="train"))
            count = subprocess.run(["pgrep", "-xc", "sleep"], capture_output=True, text=True, timeout=10)
            found.append({"accepted": True, "outcome": count.stdout.strip()})
        found.append(await ask(host, "c9", "supervise_stop", job="train", generation="1"))
        count = subprocess.run(["pgrep", "-xc", "sleep"], capture_output=True, text=True, timeout=10)
        found.append({"accepted": True, "outcome": count.stdout.strip()})
    print(json.dumps(found))

asyncio.run(main())
"""


def test_jobs_live_on_while_systemd_restarts_or_kills_the_agent(tmp_path: Path) -> None:
    drop_in = (ROOT / "deploy/systemd/supervisor.conf.example").read_text()
    files = {f"etc/systemd/system/{AGENT}.d/supervisor.conf": drop_in, "opt/lab/drive.py": DRIVE}
    path = ":".join(f"/opt/gpuvigil/{name}" for name in ("site", "src/tests", *(f"src/{s}" for s in SOURCES)))
    with systemd_host(tmp_path, [AGENT], {"agent.toml": CONFIG}, files) as host:
        host.wait(AGENT, "ActiveState", "active", 60)
        python = f"/opt/gpuvigil/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
        environment = [
            "env",
            f"PYTHONPATH={path}",
            "LD_LIBRARY_PATH=/opt/gpuvigil/python/lib",
            "PYTHONDONTWRITEBYTECODE=1",
        ]
        done = host.run(*environment, python, "/opt/lab/drive.py", timeout_s=200)
        assert done.returncode == 0, done.stderr[-3000:] + host.journal(AGENT)
        said = json.loads(done.stdout.splitlines()[-1])
        log = json.dumps(said, indent=1) + host.journal(AGENT)[-3000:]
        assert all(one["accepted"] for one in said), log
        looks = [json.loads(said[i]["outcome"])["state"] for i in (1, 2, 4)]
        assert looks == ["running", "running", "running"], log
        assert [said[i]["outcome"] for i in (3, 5, 7)] == ["2", "2", "0"], log
