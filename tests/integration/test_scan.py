"""`gpuvigil scan` as an operator runs it: a process, its output, its exit code and its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(str(ROOT / folder) for folder in ("agent", "collector", "detectors", "protos"))
LIMIT_S = 10.0  # what a scan promises


def scan(*arguments, module="gpuvigil_agent"):
    """Run a scan; returns exit code, standard output, standard error and seconds."""
    command = [sys.executable, "-m", module, "scan", *arguments]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PATHS, "HOME": "/nonexistent"}
    started = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment, cwd="/"
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr, time.monotonic() - started


@pytest.fixture
def simulated(tmp_path):
    """Make a config of a simulated node with one fault; returns the scan's arguments."""

    def make(fault="", settings=""):
        scenario = tmp_path / "scenario.toml"
        scenario.write_text(
            "version = 1\n" + (f'[[fault]]\nnode = "n1"\nat = "0s"\n{fault}\n' if fault else "")
        )
        config = tmp_path / "agent.toml"
        config.write_text(f'node = "n1"\n{settings}\n[simulate]\ngpus = 4\nscenario = "{scenario}"\n')
        return ("--simulate", "--config", str(config))

    return make


def report(*arguments):
    """Run with --json; returns the object, codes by severity and the exit code."""
    code, out, _, seconds = scan(*arguments, "--json")
    assert seconds < LIMIT_S
    found = json.loads(out)
    assert found["version"] == 1
    for finding in found["findings"]:
        assert set(finding) == {"code", "severity", "target", "evidence", "meaning", "next_step"}
        assert all(finding.values())
    return found, {(finding["code"], finding["severity"]) for finding in found["findings"]}, code


def test_this_machine_is_scanned_without_gpu_within_the_time():
    code, out, _, seconds = scan()
    assert seconds < LIMIT_S
    assert code in (0, 1, 2)
    assert "host_memory" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "\x1b" not in out


AS_NOBODY = """set -eu
folder=$1; python=$2; packages=$3; checkout=$4; shift 4
mount --make-rprivate /
for name in python packages checkout; do mkdir "$folder/$name"; done
mount --bind "$python" "$folder/python"
mount --bind "$packages" "$folder/packages"
mount --bind "$checkout" "$folder/checkout"
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""


@pytest.fixture
def open_folder():
    """A folder that every user may look into, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="gpuvigil-nobody-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.needs_root
def test_no_root_is_needed(open_folder):
    """This interpreter and checkout may lie where only root may look: nobody sees them elsewhere."""
    python = f"{open_folder}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    sources = [f"{open_folder}/checkout/{name}" for name in ("agent", "collector", "detectors", "protos")]
    path = os.pathsep.join([*sources, f"{open_folder}/packages"])
    folders = [str(open_folder), sys.base_prefix, sysconfig.get_path("platlib"), str(ROOT)]
    started = time.monotonic()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh", *folders,
         python, "-m", "gpuvigil_agent", "scan", "--json"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "HOME": "/nonexistent",
             "LD_LIBRARY_PATH": f"{open_folder}/python/lib"},
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    assert time.monotonic() - started < LIMIT_S
    assert done.returncode in (0, 1, 2), done.stderr
    found = json.loads(done.stdout)
    assert "host_cpu" in found["checked"]
    assert "Traceback" not in done.stderr


def test_the_operators_command_does_the_same():
    code, out, _, _ = scan("--json", module="gpuvigil.cli")
    assert json.loads(out)["version"] == 1
    assert code in (0, 1, 2)


def test_a_healthy_simulated_node_is_ok(simulated):
    found, codes, code = report(*simulated())
    assert (found["node"], found["state"], code, codes) == ("n1", "ok", 0, set())
    assert {"gpus", "network", "filesystem"} <= set(found["checked"])


@pytest.mark.parametrize(
    ("fault", "finding", "exit_code"),
    [
        ('kind = "ecc_uncorrectable"\ngpu = 1', ("gpu_ecc_uncorrectable", "critical"), 2),
        ('kind = "row_remap_failure"\ngpu = 1', ("gpu_row_remap_failure", "critical"), 2),
        ('kind = "power_brake"\ngpu = 1', ("gpu_power_brake", "critical"), 2),
        ('kind = "nvlink_down"\ngpu = 1\nlink = 3', ("gpu_nvlink_inactive", "critical"), 2),
        ('kind = "pcie_downgrade"\ngpu = 1', ("gpu_pcie_generation", "warning"), 1),
        ('kind = "nic_down"\ninterface = "ib2"', ("interface_down", "critical"), 2),
        ('kind = "gpu_lost_xid79"\ngpu = 1', ("gpu_missing", "critical"), 2),
    ],
)
def test_a_fault_is_found_with_its_exit_code(simulated, fault, finding, exit_code):
    _, codes, code = report(*simulated(fault))
    assert finding in codes
    assert code == exit_code


def test_application_xids_are_nobodys_fault(simulated):
    _, codes, code = report(*simulated('kind = "xid_application_storm"'))
    assert code == 0
    assert {severity for _, severity in codes} <= {"info"}


@pytest.mark.parametrize("how", ["", 'call = "init"', "gpu = 1"], ids=["all", "init", "one GPU"])
def test_a_driver_that_hangs_is_a_finding_within_the_time(simulated, how):
    found, codes, code = report(*simulated(f'kind = "driver_hang"\n{how}'))
    assert ("driver_hung", "critical") in codes
    assert code == 2
    assert "host_memory" in found["checked"]


def test_a_scan_leaves_no_trace_and_knows_the_agents_inventory(simulated, tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    before = sorted(tmp_path.rglob("*"))
    report(*simulated(settings=f'state_directory = "{folder}"'))
    assert sorted(path for path in tmp_path.rglob("*") if path.suffix != ".toml") == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[host]\nfile_systems = []\n", 'unknown key "host.file_systems"; did you mean "filesystems"?'),
     ("node = 5\n", "node"), ("node = \n", "not valid TOML"), ('node = "<b>"\n', "RFC 1123"),
     ('[simulate]\nscenario = "/nonexistent"\n', "/nonexistent")],
)  # fmt: skip
def test_a_wrong_config_is_one_clear_line(tmp_path, text, expected):
    config = tmp_path / "agent.toml"
    config.write_text(text)
    code, out, err, _ = scan("--config", str(config), "--simulate")
    assert (code, out) == (3, "")
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("--jsn",), ("--config",), ("--config", "/nonexistent/x.toml"), ("extra",)]
)
def test_wrong_use_is_unknown_and_not_critical(arguments):
    code, out, err, _ = scan(*arguments)
    assert (code, out) == (3, "")
    assert err


def test_help_says_the_exit_codes():
    code, out, _, _ = scan("--help")
    assert code == 0
    assert "3 unknown" in out
