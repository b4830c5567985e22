"""Scenario files: what is accepted, and what a person reads when one is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate.__main__ import main
from gpuvigil_agent.simulate.demo import demo_scenario
from gpuvigil_agent.simulate.faults import KINDS
from gpuvigil_agent.simulate.scenario import is_for, load_scenario, parse_scenario, place
from gpuvigil_agent.simulate.world import World
from gpuvigil_protos.fault_classes import FAULT_CLASSES
from gpuvigil_protos.settings import ConfigError

FAULT = 'version = 1\n[[fault]]\nkind = "{kind}"\nnode = 3\nat = "20s"\n'
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('version = 1\nfault = 3\n', ("fault", "array", "int")),
        ("version = 2\n", ("version", "expected 1", "got 2")),
        ("title = 'x'\n", ("missing key", "version")),
        ("version = 1\nfaults = []\n", ('unknown key "faults"', 'did you mean "fault"')),
        ("version = 1\nfault = [3]\n", ("fault 1", "expected a table", "got 3")),
        (FAULT.format(kind="gpu_lost_xid97"), ("fault 1", "kind", 'did you mean "gpu_lost_xid79"')),
        (FAULT.format(kind="gremlin"), ("kind", "'gremlin'", "known: checkpoint_stall")),
        (FAULT.format(kind="power_brake"), ("fault 1 (power_brake)", "missing", "gpu")),
        (FAULT.format(kind="power_brake") + "gpus = 1\n", ('unknown key "gpus"', 'did you mean "gpu"')),
        (FAULT.format(kind="power_brake") + 'gpu = "1"\n', ("gpu", "int", "str")),
        (FAULT.format(kind="power_brake") + "gpu = -1\n", ("gpu", "0 or more", "-1")),
        (FAULT.format(kind="nic_down").replace('"20s"', "20"), ("at", "duration", "20")),
        (FAULT.format(kind="nic_down").replace("20s", "20 parsecs"), ("at", "units", "parsecs")),
        (FAULT.format(kind="nic_down") + 'duration = "0s"\n', ("duration", "more than 0s")),
        (FAULT.format(kind="nic_flap") + 'down = "9s"\n', ("down", "period")),
        (FAULT.format(kind="driver_hang") + 'gpu = 1\ncall = "init"\n', ("gpu", "expected none", "init")),
        (FAULT.format(kind="ecc_uncorrectable") + "gpu = 1\nxid = 13\n", ("xid", "13")),
        (FAULT.format(kind="driver_crash") + 'signal = "SIGTERM"\n', ("signal", "SIGTERM")),
        ("version = 1\n[[fault", ("not valid TOML",)),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_the_reason(text: str, words: tuple[str, ...]) -> None:
    """Each refusal names file, field, what was expected and what came."""
    with pytest.raises(ConfigError) as caught:
        parse_scenario(text, "site/test.toml")
    assert str(caught.value).startswith("site/test.toml: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("kind = 'power_brake'\ngpu = 8", ("gpu", "below 8", "got 8")),
        ("kind = 'xid_application_storm'\ngpus = [1, 12]", ("gpus", "below 8", "got 12")),
        ("kind = 'nvlink_down'\ngpu = 1\nlink = 18", ("link", "below 18", "got 18")),
        ("kind = 'nic_down'\ninterface = 'wlan0'", ("interface", "eth0 or ib0", "'wlan0'")),
        ("kind = 'disk_slow'\ndisk = 'sda'", ("disk", "nvme0n1", "'sda'")),
        ("kind = 'disk_filling'\nfilesystem = '/data'", ("filesystem", "/scratch", "'/data'")),
    ],
)
def test_a_part_that_the_node_lacks_is_refused(extra: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """The node that a fault is for says which parts it has; another node does not mind."""
    file = tmp_path / "s.toml"
    file.write_text(f'version = 1\n[[fault]]\nnode = 3\nat = "1s"\n{extra}\n')
    with pytest.raises(ConfigError) as caught:
        World(Simulate(scenario=str(file)), "sim-03")
    for word in (str(file), "fault 1", *words):
        assert word in str(caught.value)
    assert World(Simulate(scenario=str(file)), "sim-04").faults == ()


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    """A file that is not there, is a folder or is no UTF-8 is an error of one line."""
    (tmp_path / "latin.toml").write_bytes(b"title = '\xff'")
    for path, word in (
        (tmp_path / "no.toml", "no such file"),
        (tmp_path, "cannot be read"),
        (tmp_path / "latin.toml", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=word):
            load_scenario(path)


def test_nodes_by_name_and_by_number() -> None:
    """A number means the node whose name ends in it; a name is taken as it stands."""
    table = '[[fault]]\nkind = "nic_down"\nat = "1s"\nnode = '
    by_number, by_name = parse_scenario(f'version = 1\n{table}3\n{table}"a.b"\n', "x").faults
    assert [is_for(by_number, name) for name in ("sim-03", "gpu3", "sim-13", "3a")] == [
        True,
        True,
        False,
        False,
    ]
    assert [is_for(by_name, name) for name in ("a.b", "a-b", "a.b.c")] == [True, False, False]


def test_placing_and_ending() -> None:
    """A fault holds from its time until its duration is over."""
    (placed,) = place(parse_scenario(FAULT.format(kind="nic_down") + 'duration = "5s"\n', "x"), "n3", 10**9)
    assert [placed.active(int(second * 1e9)) for second in (20.9, 21.0, 25.9, 26.0)] == [
        False,
        True,
        True,
        False,
    ]
    assert [placed.elapsed_s(int(second * 1e9)) for second in (0, 22.0, 90.0)] == [0.0, 1.0, 5.0]


def test_the_shipped_file_has_every_kind() -> None:
    """One fault of each kind, each on its own node or in its own job."""
    faults = load_scenario(ROOT / "agent/gpuvigil_agent/simulate/scenarios/every_kind.toml").faults
    assert sorted(fault.kind for fault in faults) == sorted(KINDS)
    assert len({getattr(fault, "job", fault.node) for fault in faults}) == len(faults)


def test_every_kind_has_a_class_of_the_vocabulary_and_is_documented() -> None:
    """Classes are words of the vocabulary, limits are set, and docs/scenarios.md has a row for each kind."""
    text = (ROOT / "docs/scenarios.md").read_text()
    for kind, fault in KINDS.items():
        assert fault.fault_class in FAULT_CLASSES, kind
        assert f"| `{kind}` | {fault.fault_class}" in text
        assert f"| {fault.limit_s} |" in next(row for row in text.splitlines() if f"| `{kind}` |" in row)


@given(seed=st.integers(0, 10**9), nodes=st.integers(1, 40), gpus=st.integers(1, 8))
def test_the_demo_scenario_is_valid_for_any_fleet(seed: int, nodes: int, gpus: int) -> None:
    """It parses, hits each node at most once, starts after the warm-up and names parts that are there."""
    text = demo_scenario(seed, nodes, gpus)
    assert text == demo_scenario(seed, nodes, gpus)
    scenario = parse_scenario(text, "demo")
    hit = [fault.node for fault in scenario.faults]
    assert len(set(hit)) == len(hit)
    assert set(hit) <= set(range(nodes))
    assert all(50 <= fault.at <= 100 for fault in scenario.faults)
    assert all(getattr(fault, "gpu", 0) < gpus for fault in scenario.faults)
    assert any(fault.silent for fault in scenario.faults) == (nodes > 1)


def test_the_demo_has_many_classes() -> None:
    """On 16 nodes: ten faults of at least eight classes, and the storm."""
    faults = parse_scenario(demo_scenario(1, 16, 8), "demo").faults
    assert len([fault for fault in faults if not fault.silent]) == 10
    assert len({fault.fault_class for fault in faults}) >= 8


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What demo-scenario prints, check accepts; what is wrong ends with 2 and one line."""
    assert main(["demo-scenario", "--seed", "9", "--nodes", "4", "--gpus", "2"]) == 0
    file = tmp_path / "demo.toml"
    file.write_text(capsys.readouterr().out)
    assert main(["check", str(file)]) == 0
    assert main(["check", str(tmp_path / "none.toml")]) == 2
    assert main(["demo-scenario", "--nodes", "0"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "row", "word"),
    [
        ("memory_leak", 'gone_in = "0s"', "gone_in"),
        ("disk_filling", 'full_in = "0s"', "full_in"),
        ("xid_application_storm", "xids = []", "xids"),
        ("disk_slow", "latency_factor = inf", "latency_factor"),
        ("nvlink_errors", "gpu = 0\nlink = 1\nerrors_per_second = nan", "errors_per_second"),
        ("power_brake", "gpu = 0\nclock_share = 7.0", "clock_share"),
        ("pcie_downgrade", "gpu = 0\ngeneration = 99", "generation"),
    ],
)
def test_what_no_hardware_does_is_refused_by_name(kind: str, row: str, word: str) -> None:
    text = f'version = 1\n[[fault]]\nkind = "{kind}"\nnode = 0\nat = "1s"\n{row}\n'
    with pytest.raises(ConfigError, match=word):
        parse_scenario(text, "x")
