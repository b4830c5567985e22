"""`gpuvigil demo --slurm`: the repair on a real Slurm that the demo starts and ends by itself."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from integration import stack

pytestmark = [pytest.mark.needs_slurm]
DEMO = (sys.executable, "-m", "gpuvigil.cli", "demo", "--slurm")
STAGES = ["found", "checkpoint", "hold", "move_job", "validate", "validate", "release"]


def of_a_folder(folder: Path) -> list[psutil.Process]:
    """Processes of this machine that name a folder in their arguments or live in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in f"{process.cmdline()} {process.cwd()}":
                found.append(process)
    return found


def addresses(folder: Path) -> dict[str, set[str]]:
    """Where the daemons of Slurm listen, by program."""
    found: dict[str, set[str]] = {}
    for process in of_a_folder(folder):
        if process.name() in {"slurmctld", "slurmd"}:
            heard = [one for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
            found.setdefault(process.name(), set()).update(one.laddr.ip for one in heard)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_repair_on_slurm_moves_the_job_returns_the_node_and_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="gv-demo-") as folder:  # short: munge's socket has a limit
        place = Path(folder)
        with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
            demo = subprocess.Popen(
                (*DEMO, "--json", "--nodes", "2"), stdout=out, stderr=err,
                env=stack.environment() | {"TMPDIR": folder},
            )  # fmt: skip
        try:
            stack.wait_for(lambda: "of a local Slurm" in (place / "err").read_text(), 60, "the job")
            assert addresses(place) == {"slurmctld": {"127.0.0.1"}, "slurmd": {"127.0.0.1"}}
            demo.wait(280)
        finally:
            demo.terminate()
            demo.wait(30)
        said = (place / "err").read_text()[-6000:]
        assert (place / "out").read_bytes(), said
        repair = json.loads((place / "out").read_bytes())["repair"]
        assert repair["returned"], said
        assert (repair["job"], repair["node"], repair["to"]) == ("1", "train-00", "train-01")
        assert [stage["stage"] for stage in repair["stages"]] == STAGES
        assert "requeued" in repair["stages"][3]["what"], "Slurm moved it"
        assert repair["resumed"]["step"] >= repair["resumed"]["checkpoint_step"] > 0
        assert of_a_folder(place) == [], "neither a daemon of Slurm's nor a step is left"
        assert {entry.name for entry in place.iterdir()} == {"out", "err"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--no-repair"], "expected the repair, which runs on it; got --no-repair"), ([], "slurmctld")],
)
def test_what_it_lacks_is_said_and_nothing_is_started(
    arguments: list[str], word: str, tmp_path: Path
) -> None:
    (tmp_path / "munged").symlink_to("/bin/true")
    where = {"PATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    hidden = (
        "import gpuvigil_cli.demo.local_slurm as it; it._SBIN = ();"
        "from gpuvigil.cli import main; raise SystemExit(main())"
    )
    done = subprocess.run(
        (sys.executable, "-c", hidden, "demo", "--slurm", *arguments), env=stack.environment() | where,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["munged"]
