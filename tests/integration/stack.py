"""Real collector and agent processes on loopback, for tests that cross process boundaries."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("agent", "collector", "detectors", "protos")
STOP_WITHIN_S = 20


def free_port() -> int:
    """Return a loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """Return a clean environment in which the checkout's packages import."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": ":".join(str(ROOT / source) for source in SOURCES),
    }


@contextlib.contextmanager
def running(log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its output in `log`; ended by pid afterwards, SIGKILL when SIGTERM does not do."""
    with (
        log.open("ab") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=environment()) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()


def collector(
    folder: Path, grpc_port: int, web_port: int, *more: str
) -> contextlib.AbstractContextManager[object]:
    """Run a collector with its state in `folder`/collector; `more` are further arguments."""
    config = folder / "collector.toml"
    config.write_text(
        f'state_directory = "{folder}/collector"\n'
        f'[ingest]\naddress = "127.0.0.1:{grpc_port}"\n[web]\naddress = "127.0.0.1:{web_port}"\n'
    )
    command = (sys.executable, "-m", "gpuvigil_collector", "--config", str(config), *more)
    return running(folder / "collector.log", *command)


def token(folder: Path) -> Path:
    """Return the file of the admin's token of `collector(folder, ...)`."""
    return folder / "collector" / "admin.token"


def agent(
    folder: Path,
    name: str,
    grpc_port: int,
    metrics_port: int,
    simulate: str = "",
    source: str = "simulated",
    hook: str = "",
) -> contextlib.AbstractContextManager[object]:
    """Run an agent with its state in `folder`/`name`; `simulate` is its table, `hook` its socket."""
    config = folder / f"{name}.toml"
    config.write_text(
        f'node = "{name}"\nstate_directory = "{folder}/{name}"\n'
        f'[collector]\naddress = "127.0.0.1:{grpc_port}"\n[metrics]\naddress = "127.0.0.1:{metrics_port}"\n'
        f'[hook]\nsocket = "{hook}"\n[gpu]\nsource = "{source}"\n[simulate]\n{simulate}\n'
    )
    command = (sys.executable, "-m", "gpuvigil_agent", "--config", str(config))
    return running(folder / f"{name}.log", *command)


def fetch(url: str) -> str:
    """GET a URL. Raises OSError."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def wait_for(ask: Callable[[], T | None], within_s: float, what: str) -> T:
    """Poll until `ask` gives something true. Raises AssertionError that says what did not come."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if found := ask():
                return found
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.2)


def life_of(incident: dict[str, Any]) -> list[str]:
    """What the journal says of an incident's own life, without what repair decided about it."""
    told = [str(entry["what"]) for entry in incident["journal"]]
    return [what for what in told if not what.startswith(("case_", "action_"))]
