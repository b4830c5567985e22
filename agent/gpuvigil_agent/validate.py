"""`gpuvigil-agent validate`: is this node fit for work? The scan, then work under load, in that order.

Load is the site's command where one is configured, else `dcgmi diag` where it is installed, else a burn of
every GPU with torch where a Python with torch is named, else the host alone, said as such. Exit status 0 fit,
2 not fit, 3 not known. Whoever runs it has taken the node out of service before: it loads the GPUs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

from gpuvigil_agent import config_file, scan
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.identity import node_name
from gpuvigil_agent.kernel_grammar import clean
from gpuvigil_agent.scan_checks import judge
from gpuvigil_protos import settings

FIT, UNFIT, UNKNOWN = 0, 2, 3
_OUTPUT_MAX: Final = 2000
_BURN: Final = Path(__file__).with_name("burn.py")


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """One test and how it ended. passed None: it could not be told."""

    name: str
    passed: bool | None
    detail: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run all tests and print one JSON object; returns the exit status."""
    parser = argparse.ArgumentParser("gpuvigil-agent validate", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, metavar="FILE", help="the agent's config file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args(argv)
    try:
        config = config_file.load(options.config, options.set)
    except settings.ConfigError as error:
        sys.stderr.write(f"gpuvigil-agent validate: {error}\n")
        return UNKNOWN
    tests = run(msgspec.structs.replace(config, node=node_name(config.node, settings.Tls())))
    state = verdict(tests)
    body = {"version": 1, "state": state, "tests": msgspec.to_builtins(tests)}
    sys.stdout.write(f"{json.dumps(body)}\n")
    return {"passed": FIT, "failed": UNFIT}.get(state, UNKNOWN)


def run(config: AgentConfig) -> list[Test]:
    """Run the tests in order; the first that fails ends it."""
    tests = []
    for test in (_scan, _load):
        tests.append(test(config))
        if tests[-1].passed is False:
            break
    return tests


def verdict(tests: Sequence[Test]) -> str:
    """Passed only when every test passed; one that cannot be told leaves all unknown."""
    if any(test.passed is False for test in tests):
        return "failed"
    return "passed" if tests and all(test.passed for test in tests) else "unknown"


def _scan(config: AgentConfig) -> Test:
    began = time.monotonic()
    findings = judge(scan.facts_of(config))
    grave = [f"{one.code} {one.target}" for one in findings if one.severity == "critical"]
    detail = f"{len(grave)} critical: {', '.join(grave[:5])}" if grave else "nothing critical"
    return Test(name="scan", passed=not grave, detail=clean(detail), seconds=_since(began))


def _load(config: AgentConfig) -> Test:
    given, seconds = config.validation, float(config.validation.timeout)
    if given.command:
        return _program("site", list(given.command), seconds)
    if config.gpu.source == "simulated":
        return Test(name="host", passed=True, detail="simulated GPUs: no load to put on them", seconds=0.0)
    if (dcgmi := shutil.which("dcgmi")) is not None and config.gpu.source != "none":
        return _program("dcgmi diag", [dcgmi, "diag", "-r", "2"], seconds)
    if given.python:
        return _burn([given.python, str(_BURN)], seconds)
    return Test(
        name="host", passed=True, seconds=0.0,
        detail="no load on the GPUs: there is no validation.command, no dcgmi, no validation.python",
    )  # fmt: skip


def _program(name: str, argv: list[str], seconds: float) -> Test:
    """Run one program; its exit status is the verdict."""
    return _ran(name, argv, seconds)[0]


def _burn(argv: list[str], seconds: float) -> Test:
    """Burn every GPU; each must reach the band of its model."""
    ran, output = _ran("burn", argv, seconds)
    if not ran.passed:
        return ran
    try:
        found, known = json.loads(output)["gpus"], bands()
        slow = [text for gpu in found if (text := too_slow(gpu, known)) is not None]
    except (ValueError, KeyError, TypeError):
        return msgspec.structs.replace(ran, passed=None, detail="the burn's answer is not JSON of ours")
    detail = "; ".join(slow) or f"{len(found)} GPUs within their bands"
    return msgspec.structs.replace(ran, passed=not slow if found else None, detail=clean(detail))


def _ran(name: str, argv: list[str], seconds: float) -> tuple[Test, str]:
    """Run one program; return how it ended, its exit status the verdict, and its standard output."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False, text=True,
            errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        detail = f"not done within {seconds:g} s"
        return Test(name=name, passed=False, detail=detail, seconds=_since(began)), ""
    except OSError as error:
        detail = f"{argv[0]} could not be started: {error.strerror}"
        return Test(name=name, passed=None, detail=detail, seconds=_since(began)), ""
    said = clean((done.stdout + done.stderr)[-_OUTPUT_MAX:])
    detail = f"exit status {done.returncode}: {said}"
    test = Test(name=name, passed=done.returncode == 0, detail=detail, seconds=_since(began))
    return test, done.stdout


def bands() -> dict[str, dict[str, float]]:
    """Return the least that each model must reach: name -> tflops (bf16), gigabytes_per_second."""
    text = (resources.files("gpuvigil_agent") / "data" / "bands.toml").read_text(encoding="utf-8")
    found: dict[str, dict[str, float]] = tomllib.loads(text)["model"]
    return found


def too_slow(gpu: dict[str, Any], known: dict[str, dict[str, float]]) -> str | None:
    """Say by how much a GPU misses its model's band; None when it reaches it, or no band is known."""
    model = str(gpu["model"])
    band = next((known[name] for name in known if name in model), None)
    for key, unit in (("tflops", "TFLOPS"), ("gigabytes_per_second", "GB/s")):
        if band is not None and float(gpu[key]) < band[key]:
            return f"GPU {int(gpu['index'])}: {float(gpu[key]):.0f} {unit}, expected at least {band[key]:.0f}"
    return None


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
