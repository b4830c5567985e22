"""The simulated boards: repeatable, and never against physics."""

from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate.gpu import GPU_IDLE, POWER_BRAKE, SW_THERMAL, GpuPhysics, State
from gpuvigil_agent.simulate.world import World

START_NS = 1_800_000_000_000_000_000


def run(world: World, gpu: int, seconds: range) -> list[State]:
    """States of one GPU at whole seconds."""
    physics = GpuPhysics(world, gpu)
    return [physics.at(START_NS + second * 10**9) for second in seconds]


def world_of(node: str = "n1", scenario: str = "", **changes: object) -> World:
    """A node that starts at START_NS."""
    return World(Simulate(start_ns=START_NS, scenario=scenario, **changes), node)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    gpu=st.integers(0, 7),
    load=st.sampled_from(["training", "inference", "idle"]),
    reads=st.lists(st.integers(-100, 300), min_size=1, max_size=20),
)
def test_the_same_seed_gives_the_same_board_at_any_rate_of_reading(
    seed: int, gpu: int, load: str, reads: list[int]
) -> None:
    """One process reads each second, another only now and then: they see the same states."""
    often = run(world_of(seed=seed, load=load), gpu, range(max(reads) + 1))
    seldom = GpuPhysics(world_of(seed=seed, load=load), gpu)
    for second in sorted(second for second in reads if second >= 0):
        assert seldom.at(START_NS + second * 10**9) == often[second]


def test_seeds_nodes_and_slots_differ() -> None:
    """No two boards are the same board."""
    seconds = range(5)
    boards = [
        run(world_of("n1"), 0, seconds), run(world_of("n1"), 1, seconds), run(world_of("n2"), 0, seconds),
        run(world_of("n1", seed=2), 0, seconds),
    ]  # fmt: skip
    assert len({tuple(board) for board in boards}) == 4
    assert world_of("n1").uuid(0) == world_of("n1").uuid(0)
    assert len({world_of(n, seed=s).uuid(g) for n in ("a", "b") for s in (1, 2) for g in range(16)}) == 64


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    profile=st.sampled_from(["h100", "a100"]),
    load=st.sampled_from(["training", "inference", "idle"]),
)
def test_physics_holds(seed: int, profile: str, load: str) -> None:
    """Power under its limit (2 % of hunting), temperature that lags, clocks with reasons, growing totals."""
    world = world_of(seed=seed, profile=profile, load=load)
    card = world.profile
    states = run(world, 3, range(150))
    for last, now in itertools.pairwise(states):
        assert card.power_idle_watts * 0.9 < now.power_watts <= card.power_limit_watts * 1.02
        assert 20 < now.temperature_celsius < card.temperature_operating_celsius
        assert abs(now.temperature_celsius - last.temperature_celsius) < 4
        assert now.memory_temperature_celsius > now.temperature_celsius
        assert 0 <= now.utilization <= 1
        assert abs(now.energy_joules - last.energy_joules - last.power_watts) < 1e-3
        assert card.memory_reserved_bytes <= now.framebuffer_bytes < card.memory_bytes
        assert now.reasons or now.sm_clock_mhz == card.sm_clock_max_mhz
        assert now.ecc_corrected >= last.ecc_corrected
        assert now.pcie_replays >= last.pcie_replays
        assert (now.reasons == GPU_IDLE) == (load == "idle")


def scenario(tmp_path: Path, body: str) -> str:
    """A scenario file for node 1."""
    file = tmp_path / "s.toml"
    file.write_text(f"version = 1\n[[fault]]\nnode = 1\n{body}\n")
    return str(file)


def test_lost_cooling_heats_up_slowly_and_then_throttles(tmp_path: Path) -> None:
    """Within a minute the board is at its limit and gives way; with cooling back it recovers."""
    file = scenario(tmp_path, 'kind = "thermal_throttle"\ngpu = 2\nat = "10s"\nduration = "90s"')
    states = run(world_of(scenario=file), 2, range(240))
    limit = world_of().profile.temperature_operating_celsius
    first = next(second for second, state in enumerate(states) if state.reasons & SW_THERMAL)
    assert 15 < first < 70
    assert not any(state.reasons & SW_THERMAL for state in states[:11])
    assert limit - 8 < max(state.temperature_celsius for state in states) < limit + 5
    hot = [state.sm_clock_mhz for state in states[80:100] if state.reasons & SW_THERMAL]
    assert hot
    assert min(hot) < 0.97 * world_of().profile.sm_clock_max_mhz
    assert not any(state.reasons & SW_THERMAL for state in states[200:])


def test_power_brake_halves_the_clock_and_says_so(tmp_path: Path) -> None:
    """While it holds, the clock is at half and power falls; before and after nothing is seen."""
    file = scenario(tmp_path, 'kind = "power_brake"\ngpu = 0\nat = "10s"\nduration = "20s"')
    healthy, braked = run(world_of(), 0, range(60)), run(world_of(scenario=file), 0, range(60))
    held = [second for second, state in enumerate(braked) if state.reasons & POWER_BRAKE]
    assert held == list(range(10, 30))
    assert {braked[second].sm_clock_mhz for second in held} == {990}
    assert sum(braked[s].power_watts for s in held) < 0.6 * sum(healthy[s].power_watts for s in held)
    assert run(world_of(scenario=file), 1, range(60)) == run(world_of(), 1, range(60))


def test_a_job_moves_all_its_gpus_together() -> None:
    """Checkpoint pauses fall on the same seconds on every GPU of every node."""
    pauses = set()
    for node in ("n1", "n2"):
        for gpu in (0, 7):
            states = run(world_of(node), gpu, range(120))
            pauses.add(tuple(second for second, state in enumerate(states) if state.utilization < 0.2))
    assert len(pauses) == 1
    assert 4 <= len(next(iter(pauses))) <= 15
