"""`gpuvigil run` with commands that need no torch: statuses, signals, orphans, attempts, wrong usage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from integration.stack import environment

from gpuvigil import checkpoints
from gpuvigil.run import surroundings

RUN = (sys.executable, "-m", "gpuvigil.cli", "run")
SAVES_AND_FAILS = """
import sys
from pathlib import Path
from gpuvigil import checkpoints
folder = Path(sys.argv[1]); folder.mkdir(exist_ok=True)
fence = checkpoints.Fence(folder); number = fence.take()
partial = folder / (checkpoints.folder_name(10 * number, number) + ".partial"); partial.mkdir()
(partial / "x").write_bytes(b"1")
checkpoints.finish(partial, 10 * number, fence, {"x": checkpoints.digest(partial / "x")})
sys.exit(0 if number == 4 else 3)
"""
ORPHAN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
sys.exit(0)
"""


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment() | {"GPUVIGIL_SOCKET": "/nonexistent"} | more
    return subprocess.run([*RUN, *arguments], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("status", [0, 7])
def test_the_commands_own_status_is_ours(status: int) -> None:
    assert run("--", sys.executable, "-c", f"raise SystemExit({status})").returncode == status


def test_a_command_that_a_signal_ended_has_the_shells_status() -> None:
    assert run("--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)").returncode == 137


@pytest.mark.parametrize(
    "arguments", [(), ("--",), ("--attempts", "0", "--", "true"), ("--attempts", "x", "--", "true")]
)
def test_wrong_usage_is_one_line_and_status_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr


def test_a_command_that_is_not_there_is_said() -> None:
    done = run("--", "/nonexistent/torchrun")
    assert (
        done.returncode == 127 and "/nonexistent/torchrun" in done.stderr and "Traceback" not in done.stderr
    )


def test_attempts_that_bring_checkpoints_go_on_and_those_that_do_not_end(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    options = ("--checkpoints", str(folder), "--attempts", "2", "--backoff", "0.05", "--")
    done = run(*options, sys.executable, "-c", SAVES_AND_FAILS, str(folder))
    assert done.returncode == 0, done.stderr
    newest = checkpoints.newest(folder)
    assert newest is not None and newest.step == 40
    assert done.stderr.count("gpuvigil run: attempt") == 3
    done = run(*options, sys.executable, "-c", "raise SystemExit(3)")
    assert done.returncode == 75 and "2 attempts brought no checkpoint newer than step 40" in done.stderr


def test_sigterm_reaches_the_command_and_nothing_is_tried_again(tmp_path: Path) -> None:
    command = [*RUN, "--checkpoints", str(tmp_path), "--", sys.executable, "-c",
               "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(5)); print('up', flush=True);"
               " time.sleep(600)"]  # fmt: skip
    env = environment() | {"GPUVIGIL_SOCKET": "/nonexistent"}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 5


def test_what_an_attempt_leaves_behind_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert run("--", sys.executable, "-c", ORPHAN, str(file)).returncode == 0
    pid = int(file.read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists(), "a session of its own does not save it"


def test_the_environment_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    found = surroundings(os.environ, "", hook=True)
    assert found["GPUVIGIL_JOB"] == "77" and found["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    first, _, rest = found["PYTHONPATH"].partition(os.pathsep)
    assert Path(first, "sitecustomize.py").exists() and rest.endswith("/mine")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0")
    found = surroundings(os.environ, "mine", hook=False)
    assert found["GPUVIGIL_JOB"] == "mine" and found["PYTHONPATH"] == "/mine"
    assert found["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "0", "what the user says stands"


def test_a_sitecustomize_that_ours_hides_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['SEEN'] = 'yes'\n")
    done = run("--", sys.executable, "-c", "import os; print(os.environ.get('SEEN'))",
               PYTHONPATH=os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]))  # fmt: skip
    assert done.stdout == "yes\n", done.stderr


@pytest.mark.parametrize(
    ("script", "more", "watched"),
    [
        (False, {}, True),
        (True, {}, False),
        (True, {"GPUVIGIL_AUTO": "single"}, True),
        (True, {"RANK": "0"}, True),
    ],
)
def test_the_command_itself_is_watched_and_what_it_starts_only_as_a_rank(
    tmp_path: Path, script: bool, more: dict[str, str], watched: bool
) -> None:
    package = tmp_path / "torch/optim"  # the hook looks for one name of torch and takes one function of it
    package.mkdir(parents=True)
    (tmp_path / "torch/__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "optimizer.py").write_text(
        "def register_optimizer_step_post_hook(hook):\n    print('watched', hook.__name__)\n"
    )
    train = [sys.executable, "-c", "import torch.optim.optimizer; print('trained')"]
    between = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"] if script else []
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    done = run("--", *between, *train, PYTHONPATH=path, **more)
    assert done.stdout == ("watched stepped\n" if watched else "") + "trained\n", done.stderr
