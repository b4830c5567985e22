"""Marks that name what a suite needs; `GPUVIGIL_REQUIRE=all` turns an unmet need into a failure.

`make test` runs what the machine allows and lists each suite that it did not run, with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from parallel import SideBySide

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _tools(*names: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        absent = [name for name in names if shutil.which(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    return missing


def _root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _systemd() -> str | None:
    return _root() or _tools("systemd-nspawn", "systemd-analyze", "nsenter")()


def _slurm() -> str | None:
    return _root() or _tools("munged", "slurmctld", "slurmd", "scontrol", "sbatch", "openssl", "setpriv")()


def _kube() -> str | None:
    cache = Path(os.environ.get("GPUVIGIL_KUBE_CACHE", Path.home() / ".cache/gpuvigil/kubernetes"))
    absent = [
        one for one in ("kube-apiserver", "kube-controller-manager") if not (cache / "bin" / one).is_file()
    ]
    if absent:
        return f"not in {cache}: {', '.join(absent)} (tests/integration/build_kubernetes.sh makes them)"
    return _tools("etcd", "openssl")()


def _torch() -> str | None:
    return None if importlib.util.find_spec("torch") else "not installed: torch"


def _shared() -> str | None:
    return None if (SHARED / "data").is_dir() else "the reference data are not beside the checkout"


NEEDS: dict[str, Callable[[], str | None]] = {
    "needs_root": _root,
    "needs_kube": _kube,
    "needs_prometheus": _tools("prometheus", "promtool"),
    "needs_alertmanager": _tools("prometheus-alertmanager"),
    "needs_systemd": _systemd,
    "needs_systemd_analyze": _tools("systemd-analyze"),
    "needs_shared": _shared,
    "needs_slurm": _slurm,
    "needs_torch": _torch,
}
_not_run: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Take the rules of running side by side."""
    config.pluginmanager.register(SideBySide())


def pytest_sessionstart() -> None:
    """Modules that need torch to be imported skip themselves whole: where all is required, end here."""
    if os.environ.get("GPUVIGIL_REQUIRE") == "all" and (reason := _torch()):
        pytest.exit(f"needs_torch: {reason}", 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what the machine lacks, or fail it where everything is required."""
    reasons = {name: check() for name, check in NEEDS.items()}
    for item in items:
        for name, reason in reasons.items():
            if reason is None or item.get_closest_marker(name) is None:
                continue
            _not_run[name] = reason
            if os.environ.get("GPUVIGIL_REQUIRE") == "all":
                item.add_marker(pytest.mark.usefixtures("unmet_need"))
                item.user_properties.append(("unmet_need", f"{name}: {reason}"))
            else:
                item.add_marker(pytest.mark.skip(reason=f"{name}: {reason}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is required, a test that skips itself has not run, and so has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("GPUVIGIL_REQUIRE") == "all":
        report.outcome, report.longrepr = "failed", f"{item.nodeid} skipped itself: {report.longrepr}"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a worker tell what it did not run."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_run"] = _not_run


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear what a worker did not run."""
    _not_run.update(getattr(node, "workeroutput", {}).get("not_run", {}))


@pytest.fixture
def unmet_need(request: pytest.FixtureRequest) -> None:
    """Fail a test whose need is not met although GPUVIGIL_REQUIRE=all asks for it."""
    pytest.fail(str(dict(request.node.user_properties)["unmet_need"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List every suite that was not run, with the reason and the way to run it."""
    if os.environ.get("GPUVIGIL_REQUIRE") != "all":
        for name, reason in sorted(_not_run.items()):
            terminalreporter.write_line(f"NOT RUN {name}: {reason}")
    if "gpu" in str(terminalreporter.config.option.markexpr) and "not gpu" in str(
        terminalreporter.config.option.markexpr
    ):
        terminalreporter.write_line(
            "not run by design: gpu (on a machine with an NVIDIA driver: make test-gpu)"
        )


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference data (mark needs_shared)."""
    return SHARED
