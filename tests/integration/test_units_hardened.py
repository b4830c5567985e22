"""The systemd units stay as closed as promised: exposure by systemd-analyze, no unknown keys."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
pytestmark = pytest.mark.needs_systemd_analyze


@pytest.mark.parametrize(
    ("unit", "most"), [("gpuvigil-agent", 16), ("gpuvigil-collector", 12), ("gpuvigil-helper", 17)]
)
def test_exposure_is_within_the_promise(unit: str, most: int) -> None:
    """`systemd-analyze security --threshold` exits non-zero above the promise (tenths)."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={most}"]
    done = subprocess.run([*command, UNITS / f"{unit}.service"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@pytest.mark.parametrize("unit", ["gpuvigil-agent", "gpuvigil-collector", "gpuvigil-helper"])
def test_unit_has_no_unknown_keys(unit: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` exits 0 even with an unknown key, so any other word on stderr is a failure."""
    text = (UNITS / f"{unit}.service").read_text().replace(f"/opt/gpuvigil/bin/{unit}", "/bin/true")
    copy = tmp_path / f"{unit}.service"
    copy.write_text(text)
    if (socket := UNITS / f"{unit}.socket").exists():
        (tmp_path / socket.name).write_text(socket.read_text())
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=30)
    complaints = [line for line in done.stderr.splitlines() if unit in line]
    assert done.returncode == 0
    assert complaints == []


def test_agent_unit_has_no_capability_and_reads_the_journal() -> None:
    """The agent runs unprivileged; the kernel log reaches it through the journal's group."""
    text = (UNITS / "gpuvigil-agent.service").read_text()
    assert "\nCapabilityBoundingSet=\n" in text
    assert "SupplementaryGroups=systemd-journal" in text
