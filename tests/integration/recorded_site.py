"""One collector, its agents and job, and the Prometheus that scrapes it: record_alerts.py plays on it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from integration import stack
from integration.promtool_file import Fires, record, write

SEED = 7
STEP_S = 5
OUT = stack.ROOT / "tests/fixtures/alerts"


class Site:
    """One collector and the Prometheus that scrapes it."""

    def __init__(self, folder: Path, running: contextlib.ExitStack) -> None:
        self.folder, self.running = folder, running
        self.grpc, self.web, self.prometheus = (stack.free_port() for _ in range(3))

    def start(
        self, more: str = "", program: tuple[str, ...] = ("-m", "gpuvigil_collector")
    ) -> subprocess.Popen:
        config = self.folder / "collector.toml"
        config.write_text(
            f'state_directory = "{self.folder}/collector"\n[detection]\nstatistical = false\n'
            f'[ingest]\naddress = "127.0.0.1:{self.grpc}"\n[web]\naddress = "127.0.0.1:{self.web}"\n{more}'
        )
        command = (sys.executable, *program, "--config", str(config))
        process = self.running.enter_context(stack.running(self.folder / "collector.log", *command))
        stack.wait_for(lambda: self.ask("health"), 60, "the collector's API")
        return process

    def scrape(self, *also: int) -> None:
        """Start the Prometheus that scrapes this collector, and others at their web ports."""
        targets = ", ".join(f'"127.0.0.1:{port}"' for port in (self.web, *also))
        (self.folder / "prometheus.yml").write_text(
            f"global: {{scrape_interval: {STEP_S}s}}\nscrape_configs:\n  - job_name: gpuvigil-collector\n"
            f"    static_configs: [{{targets: [{targets}]}}]\n"
        )
        prometheus = (
            "prometheus", f"--config.file={self.folder}/prometheus.yml", "--log.level=warn",
            f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address=127.0.0.1:{self.prometheus}",
        )  # fmt: skip
        self.running.enter_context(stack.running(self.folder / "prometheus.log", *prometheus))

    def ask(self, path: str) -> dict:
        return json.loads(stack.fetch(f"http://127.0.0.1:{self.web}/api/v1/{path}"))

    def agent(self, name: str, simulate: str, **more: str) -> subprocess.Popen:
        found = stack.agent(self.folder, name, self.grpc, stack.free_port(), simulate, **more)
        return self.running.enter_context(found)

    def write(self, run: str, fires: list, silent_day: bool = False) -> None:
        """fires: (alert, injected at, PromQL label matchers). Checked at the recording's end."""
        recording = record(self.prometheus, STEP_S)
        end_s = (recording.length - 1) * STEP_S
        rows = [
            Fires(
                alert=alert, after_s=max(0, recording.seconds(at_s) - STEP_S), by_s=by or end_s, labels=labels
            )
            for alert, at_s, labels, by in fires
        ]
        version = subprocess.run(["prometheus", "--version"], capture_output=True, text=True).stdout.split()[
            2
        ]
        command = f"python -m integration.record_alerts {run}"
        head = [
            f"Recorded by `{command}`, seed {SEED}, Prometheus {version}. Do not edit.",
            *(
                ["The recorded minutes go on by promtool's repetition until 24 h are full."]
                if silent_day
                else []
            ),
        ]
        write(OUT / f"{run}.yml", head, recording, rows, silent_day)


@contextlib.contextmanager
def job(site: Site) -> Iterator[list[int]]:
    """A training job of two ranks on its own node; yields the ranks' process ids."""
    socket = site.folder / "hook.sock"
    site.agent("trainer", "", source="none", hook=str(socket))
    stack.wait_for(socket.exists, 60, "the hook's socket")
    command = [sys.executable, str(Path(__file__).parent / "two_ranks.py"), str(socket)]
    process = subprocess.Popen(command, env=stack.environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield [int(word) for word in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait(10)
