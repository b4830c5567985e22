"""The agent's config check: bounds with one line each, and no config whatever that ends in a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuvigil_agent.__main__ import main
from gpuvigil_agent.config import AgentConfig
from gpuvigil_protos import settings as config_files

EXAMPLE = (Path(__file__).parents[2] / "deploy/config/agent.toml").read_text()
KEYS = [
    f"{field.name}.{inner.name}" if isinstance(field.default, msgspec.Struct) else field.name
    for field in msgspec.structs.fields(AgentConfig)
    for inner in (
        msgspec.structs.fields(type(field.default)) if isinstance(field.default, msgspec.Struct) else (field,)
    )
]


def check(*arguments: str) -> tuple[int, str, str]:
    """Run the config check in this process; whatever it raises fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments, "--check-config"])
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("gpu.source=rocm", "gpu.source: expected one of auto, nvml, simulated, none, got 'rocm'"),
        ('gpu.call_deadline="0ms"', "gpu.call_deadline: expected 0.1s to 60s"),
        ('gpu.call_deadline="61s"', "gpu.call_deadline: expected 0.1s to 60s"),
        ("gpu.calls_per_second_max=9", "gpu.calls_per_second_max: "),
        ("gpu.calls_per_second_max=1000001", "gpu.calls_per_second_max: "),
        ("simulate.gpus=0", "simulate.gpus: "),
        ("simulate.gpus=17", "simulate.gpus: "),
        ("simulate.seed=-1", "simulate.seed: "),
        ("simulate.start_ns=99999999999999999999", "simulate.start_ns: "),
        ("simulate.load=sleep", "simulate.load: expected one of training, inference, idle, got 'sleep'"),
        ('collector.backoff_max="0s"', "collector.backoff_max: expected 0.1s to 3600s"),
        ('collector.flush_interval="9e9s"', "collector.flush_interval: "),
        (f'spool.size_max="{"9" * 40}TiB"', "spool.size_max: "),
        ('spool.size_max="1025TiB"', "spool.size_max: expected 1MiB to 1024TiB"),
        ('host.filesystems=["data"]', "host.filesystems: expected absolute paths, got 'data'"),
        ('metrics.address="127.0.0.1:\u00b2"', "metrics.address: expected host:port"),
        ('metrics.address="a..b:1"', "metrics.address: expected host:port"),
        ('collector.address="127.0.0.1:0"', "collector.address: expected host:port"),
        ('collector.address="[::1:9511"', "collector.address: expected host:port"),
        ('state_directory=""', "state_directory: expected a directory"),
        ('simulate.scenario="\\u0000"', "simulate.scenario: expected printable text"),
        ("simulate.gpus=" + "[" * 3000, "simulate.gpus: "),
    ],
)
def test_a_value_out_of_bounds_is_one_line_that_names_it(override: str, words: str) -> None:
    code, out, err = check("--set", "node=n1", "--set", override)
    assert (code, out) == (1, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert err.strip().isprintable()


@pytest.mark.parametrize("override", ['gpu.call_deadline="100ms"', 'gpu.call_deadline="60s"',
    "gpu.calls_per_second_max=10", "gpu.calls_per_second_max=1000000", "simulate.gpus=1", "simulate.gpus=16",
    'collector.address="[::1]:9511"', 'metrics.address="localhost:0"', 'host.filesystems=["/"]'])  # fmt: skip
def test_the_bounds_themselves_are_good(override: str) -> None:
    assert check("--set", "node=n1", "--set", override)[0] == 0


values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
    | st.sampled_from(["1e400s", "9" * 400 + "s", "1s", "0s", "1KiB", "nanB", "/", "\x00", "127.0.0.1:1"])
    | st.lists(st.text(max_size=5) | st.integers(), max_size=3)
)  # fmt: skip

DAMAGE = ["[[", "=", '"""', "[" * 4000, "9" * 5000, "\x00", "0x", "1979-05-27", "[gpu]\n", "inf", "{a = 1}"]


def toml(value: object) -> str:
    """Write a value as TOML or, for None, as something that is none."""
    return "~" if value is None else json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=3))
def test_overrides_of_any_kind_end_in_0_or_in_one_line(overrides: dict[str, object]) -> None:
    words = [word for key, value in overrides.items() for word in ("--set", f"{key}={toml(value)}")]
    code, out, err = check(*words)
    assert (code, bool(out), len(err.splitlines())) in {(0, True, 0), (1, False, 1)}, err
    assert err.rstrip("\n").isprintable()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(EXAMPLE)), st.integers(0, 30), st.text(max_size=12) | st.sampled_from(DAMAGE))
def test_a_file_damaged_anywhere_ends_in_0_or_in_one_line(
    tmp_path: Path, at: int, cut: int, text: str
) -> None:
    file = tmp_path / "agent.toml"
    file.write_bytes((EXAMPLE[:at] + text + EXAMPLE[at + cut :]).encode("utf-8", "surrogatepass"))
    code, out, err = check("--config", str(file))
    assert (code, bool(out), len(err.splitlines())) in {(0, True, 0), (1, False, 1)}, err
    assert err.rstrip("\n").isprintable()


def test_the_shipped_file_shows_every_key_with_its_default() -> None:
    shipped, defaults = tomllib.loads(EXAMPLE), tomllib.loads(config_files.effective(AgentConfig()))
    assert shipped.pop("supervisor") == {"jobs": {}} and defaults.pop("supervisor") == {"jobs": {}}
    assert {name: set(table) if isinstance(table, dict) else () for name, table in shipped.items()} == {
        name: set(table) if isinstance(table, dict) else () for name, table in defaults.items()
    }
    assert config_files.convert(tomllib.loads(EXAMPLE), AgentConfig, "agent.toml") == AgentConfig()
