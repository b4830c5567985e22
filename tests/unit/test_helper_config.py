"""The helper's config file and the agent's table of jobs: as shipped, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuvigil_agent import config_file
from gpuvigil_helper import config
from gpuvigil_protos import settings
from gpuvigil_protos.settings import ConfigError

ROOT = Path(__file__).resolve().parents[2]
JOB = '[supervisor.jobs.train]\ncommand = ["run"]\n'


def test_the_shipped_file_is_the_defaults() -> None:
    assert config.load(ROOT / "deploy/config/helper.toml") == config.load(None)
    assert config.load(None).act is False and config.load(None).stop.allow == ""


def test_the_effective_file_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        JOB + 'environment = {A = "x y", B_2 = "\\"q\\""}\n[supervisor.jobs."a:b"]\ncommand = ["c"]\n'
    )
    first = config_file.load(file, [])
    assert first.supervisor.jobs["train"].environment == {"A": "x y", "B_2": '"q"'}
    file.write_text(settings.effective(first))
    assert config_file.load(file, []) == first
    file.write_text(settings.effective(config.load(None)))
    assert config.load(file) == config.load(None)


@pytest.mark.parametrize(("text", "why"), [
    (JOB.replace('["run"]', "[]"), "command"),
    (JOB.replace('["run"]', '"run"'), "command"),
    (JOB + 'directory = "x"', "directory: expected an absolute path"),
    (JOB + 'environment = {"A B" = "x"}', "environment: expected names"),
    (JOB + "environment = {A = 1}", "environment"),
    (JOB + 'grace = "2h"', "grace: expected 0s to 600s"),
    (JOB + 'log_max = "1B"', "log_max: expected 4KiB"),
    (JOB + "attempts = 0", "attempts"),
    (JOB + 'shell = "x"', "shell"),
    (JOB.replace("train", '"../x"'), "expected a job's name"),
    ("[helper]\nsocet = 1", 'did you mean "socket"'),
])  # fmt: skip
def test_a_bad_job_is_named(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"agent\.toml: ") as found:
        config_file.load(file, [])
    assert why in str(found.value)
