"""A validation that the collector asked for: one at a time, in a process of its own, looked at when asked.

verbs: validate (incident): begin; validation (incident): how it stands, `state detail`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.driver_child import child_environment
from gpuvigil_agent.kernel_grammar import clean
from gpuvigil_protos import log, settings

_OUTPUT_MAX: Final = 64 << 10
_log = log.get("validation")


class _Report(msgspec.Struct):
    state: str
    tests: list[dict[str, object]]


class Validation:
    """Begin and look; both answer at once. The process gets the agent's own config, in a file."""

    def __init__(self, config: AgentConfig, state: Path) -> None:
        self._config, self._file = config, state / "validation.toml"
        self._timeout_s = float(config.validation.timeout)
        self._states: dict[str, str] = {}
        self._running = ""
        self._lock = threading.Lock()

    def begin(self, name: str) -> str:
        """Begin one by that name, once; returns how it stands. Raises BlockingIOError beside another."""
        with self._lock:
            if name in self._states:
                return self._states[name]
            if self._running:
                raise BlockingIOError(f"validation {self._running} runs")
            self._running, self._states = name, {name: "running"}
        threading.Thread(target=self._run, args=(name,), name="validation", daemon=True).start()
        return "running"

    def state(self, name: str) -> str:
        """Return `running`, `passed ...`, `failed ...`, `unknown ...`, or `none` where it was never begun."""
        with self._lock:
            return self._states.get(name, "none")

    def _run(self, name: str) -> None:
        began = time.monotonic()
        try:
            state = self._once()
        except OSError as error:
            state = f"unknown it could not be started: {error.strerror}"
        _log.info("validated", incident=name, outcome=state[:300], seconds=round(time.monotonic() - began, 1))
        with self._lock:
            self._states[name], self._running = state, ""

    def _once(self) -> str:
        self._file.write_text(settings.effective(self._config), encoding="utf-8")
        argv = [sys.executable, "-P", "-m", "gpuvigil_agent", "validate", "--config", str(self._file)]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=child_environment(), start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)
            return f"failed not done within {self._timeout_s:g} s"
        try:
            report = msgspec.json.decode(output[-_OUTPUT_MAX:], type=_Report)
        except msgspec.MsgspecError:
            return f"unknown exit status {process.returncode} and no report"
        told = "; ".join(f"{test.get('name')}: {test.get('detail')}" for test in report.tests)
        return clean(f"{report.state} {told}")[:900]
