"""The CLI over the real web server with real incidents: what is read in a pipe and on a narrow screen."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from unit.brain_help import Rig
from unit.incident_help import finding

from gpuvigil_cli.__main__ import main
from gpuvigil_cli.client import Client
from gpuvigil_cli.show import show_incidents

UUID = "GPU-5d1b3c2a-1111-2222-3333-444455556666"
CAUSE = (
    "Xid 79: GPU has fallen off the bus; the driver asks for: node reboot, and this sentence is a long one"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("state"), nodes=2, gpus=2)
    rig.rules.findings = [finding("gpu_lost", f"n1/gpu:{UUID}", sentence=CAUSE)]
    rig.tick()
    with rig.serve() as served:
        yield served


def test_every_command_says_what_the_api_holds(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url]) == 0
    assert "1 open, see: gpuvigil incidents" in capsys.readouterr().out
    assert main(["nodes", "--url", url]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert main(["incidents", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "gpu_lost" in shown and "n1/gpu:GPU-5d1b3c2a…" in shown and f"    {CAUSE}\n" in shown
    id_ = shown.split()[0]
    assert main(["why", id_, "--url", url]) == 0
    why = capsys.readouterr().out
    assert why.startswith(CAUSE)
    assert UUID in why, "where it is looked at closely the name is whole"
    assert "opened" in why


def test_on_a_narrow_screen_a_long_cause_stays_under_its_incident(url: str) -> None:
    with Client(url) as client:
        rows = client.items("/api/v1/incidents", state="open")
    screen = io.StringIO()
    show_incidents(Console(file=screen, width=80, force_terminal=True, color_system=None), rows, every=False)
    lines = screen.getvalue().splitlines()
    cause = [line for line in lines[1:] if line.strip()]
    assert len(cause) > 1 and all(line.startswith("    ") for line in cause[-2:])
    assert all(len(line) <= 80 for line in lines)
