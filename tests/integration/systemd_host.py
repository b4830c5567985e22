"""A throw-away host with systemd as PID 1: an overlay of this machine's root, booted by systemd-nspawn.

Only loopback exists inside (--private-network). The interpreter, its site-packages and the checkout are bound
read-only below /opt/gpuvigil, because the units hide /root and /home.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("agent", "collector", "detectors", "protos")
QUIET_UNITS = (
    "systemd-udevd", "systemd-udev-trigger", "systemd-networkd", "systemd-resolved", "systemd-timesyncd",
    "systemd-hwdb-update", "systemd-random-seed",
)  # fmt: skip
TARGET = """[Unit]
Requires=basic.target dbus.socket
Wants={wants}
After=basic.target
AllowIsolate=yes
"""


class SystemdHost:
    """A running host; `run` executes inside it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def run(self, *command: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command in the host's namespaces; never raises on its exit status."""
        enter = ["nsenter", "-t", str(self._pid), "-a", "--"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=timeout_s)

    def show(self, unit: str, field: str) -> str:
        """Return one property of a unit."""
        return self.run("systemctl", "show", "-P", field, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """Return what a unit logged."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout

    def wait(self, unit: str, field: str, wanted: str, within_s: float) -> None:
        """Poll a property until it is as wanted. Raises AssertionError with the journal."""
        deadline = time.monotonic() + within_s
        while (seen := self.show(unit, field)) != wanted:
            assert time.monotonic() < deadline, (
                f"{unit}: {field}={seen!r}, not {wanted!r}\n{self.journal(unit)}"
            )
            time.sleep(0.1)


def _wrapper(module: str) -> str:
    path = ":".join(["/opt/gpuvigil/site", *(f"/opt/gpuvigil/src/{name}" for name in SOURCES)])
    python = f"/opt/gpuvigil/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    # the interpreter's own libpython, not another one of the same name that the host may have
    library = "LD_LIBRARY_PATH=/opt/gpuvigil/python/lib"
    words = f'{library} PYTHONPATH={path} PYTHONDONTWRITEBYTECODE=1 exec {python} -m {module} "$@"'
    return f"#!/bin/sh\n{words}\n"


def _furnish(root: Path, units: list[str], configs: dict[str, str], files: dict[str, str]) -> None:
    """Put units, wrappers and configs into the host's root."""
    system = root / "etc/systemd/system"
    for name in QUIET_UNITS:
        (system / f"{name}.service").unlink(missing_ok=True)
        (system / f"{name}.service").symlink_to("/dev/null")
    for unit in units:
        shutil.copy(ROOT / "deploy/systemd" / unit, system / unit)
    (system / "lab.target").write_text(TARGET.format(wants=" ".join(units)))
    (root / "etc/machine-id").unlink(missing_ok=True)
    (root / "etc/machine-id").touch()
    for folder in ("bin", "python", "site", "src"):
        (root / "opt/gpuvigil" / folder).mkdir(parents=True, exist_ok=True)
    for name in ("agent", "collector", "helper"):
        script = root / f"opt/gpuvigil/bin/gpuvigil-{name}"
        script.write_text(_wrapper(f"gpuvigil_{name}"))
        script.chmod(0o755)
    (root / "etc/gpuvigil").mkdir(exist_ok=True)
    for name, text in configs.items():
        (root / "etc/gpuvigil" / name).write_text(text)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755 if text.startswith("#!") else 0o644)


@contextlib.contextmanager
def _overlay(scratch: Path) -> Iterator[Path]:
    """Mount an overlay of / on a tmpfs; what the host writes is gone afterwards."""
    scratch.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", scratch], check=True, timeout=10)
    try:
        for name in ("up", "work", "root"):
            (scratch / name).mkdir()
        layers = f"lowerdir=/,upperdir={scratch}/up,workdir={scratch}/work"
        command = ["mount", "-t", "overlay", "overlay", "-o", layers, scratch / "root"]
        subprocess.run(command, check=True, timeout=10)
        try:
            yield scratch / "root"
        finally:
            subprocess.run(["umount", "-l", scratch / "root"], check=True, timeout=20)
    finally:
        subprocess.run(["umount", "-l", scratch], check=True, timeout=20)


def _systemd_of(nspawn: subprocess.Popen[bytes], within_s: float = 30) -> int:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = subprocess.run(
            ["pgrep", "-P", str(nspawn.pid), "-x", "systemd"], capture_output=True, text=True
        )
        if found.stdout.strip():
            return int(found.stdout.split()[0])
        assert nspawn.poll() is None, "systemd-nspawn ended early"
        time.sleep(0.05)
    raise AssertionError("no systemd inside systemd-nspawn")


@contextlib.contextmanager
def systemd_host(
    scratch: Path, units: list[str], configs: dict[str, str], files: dict[str, str] | None = None
) -> Iterator[SystemdHost]:
    """Boot a host that wants `units`, with `configs` as /etc/gpuvigil/<name> and any other `files`."""
    binds = {sys.base_prefix: "python", sysconfig.get_path("purelib"): "site", str(ROOT): "src"}
    with _overlay(scratch / "host") as root:
        _furnish(root, units, configs, files or {})
        command = ["systemd-nspawn", "-D", root, "-b", "--register=no", "--keep-unit", "--private-network"]
        command += ["--console=pipe", "--link-journal=no", "--quiet"]
        command += [f"--bind-ro={source}:/opt/gpuvigil/{name}" for source, name in binds.items()]
        log = (scratch / "console.log").open("wb")
        with (
            log,
            subprocess.Popen([*command, "--", "systemd.unit=lab.target"], stdout=log, stderr=log) as nspawn,
        ):
            try:
                yield SystemdHost(_systemd_of(nspawn))
            finally:
                os.kill(nspawn.pid, signal.SIGTERM)
                try:
                    nspawn.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    nspawn.kill()
