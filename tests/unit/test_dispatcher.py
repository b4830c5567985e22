"""The `gpuvigil` dispatcher where only the hook is installed: one line that names the extra, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_bare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run with the hook package alone: no site-packages (-S), nothing else on the path."""
    (folder / "gpuvigil").symlink_to(ROOT / "agent/gpuvigil")
    return subprocess.run(
        [sys.executable, "-S", "-m", "gpuvigil.cli", *arguments], env={"PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=30, check=False, cwd=folder,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "extra", "status"),
    [
        (["status"], "collector", 2), (["demo"], "collector", 2),
        (["scan"], "agent", 3),  # unknown: 2 would say that the node is critical
    ],
)  # fmt: skip
def test_a_part_that_is_not_installed_is_named(
    tmp_path: Path, arguments: list[str], extra: str, status: int
) -> None:
    done = run_bare(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1
    assert f"pip install 'gpuvigil[{extra}]'" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_says_what_each_part_gives(tmp_path: Path, arguments: list[str]) -> None:
    done = run_bare(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gpuvigil scan" in done.stdout and "gpuvigil[collector]" in done.stdout
