"""The hook's own wheel: builds from the same source, imports and runs in a bare interpreter."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_the_hook_alone_and_runs_with_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), "deploy/hook"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = tmp_path.glob("gpuvigil_hook-*-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    files = (path for path in (ROOT / "agent/gpuvigil").rglob("*") if path.is_file())
    ours = {str(path.relative_to(ROOT / "agent")) for path in files if path.suffix != ".pyc"}
    assert {name for name in names if ".dist-info/" not in name} == ours
    code = (
        "from gpuvigil import monitor\n"
        "for _ in range(3):\n"
        "    with monitor.step() as s:\n"
        "        s.log(loss=1.0)\n"
        "print(monitor._ring.written)"
    )
    assert bare(code, wheel) == ("3\n", "")


def bare(code: str, path: Path) -> tuple[str, str]:
    """Run code with nothing but `path` to import from."""
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(path)}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    return ran.stdout, ran.stderr


def test_the_readmes_two_lines_run(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    [block] = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "monitor.step" in b]
    code = f"def train_one_step():\n    return 0.5\n{block}\nprint(monitor._ring.written)"
    assert bare(code, ROOT / "agent") == ("1000\n", "")
