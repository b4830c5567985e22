"""One GPU's physics: load -> power -> temperature -> clocks, a second at a time.

Every second's state follows from seed, node, slot, second and the faults alone. It is integrated from a
fixed second before the start, so two processes, or one that restarts, see the same board at any rate of
reading. A reader that was away for an hour pays the steps it missed (about 10 us each).
"""

from __future__ import annotations

import math
import threading
from typing import Final, NamedTuple

import pynvml

from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.faults import PowerBrake, ThermalThrottle
from gpuvigil_agent.simulate.load import Load
from gpuvigil_agent.simulate.world import World

GPU_IDLE: Final[int] = pynvml.nvmlClocksEventReasonGpuIdle
SW_POWER_CAP: Final[int] = pynvml.nvmlClocksEventReasonSwPowerCap
HW_SLOWDOWN: Final[int] = pynvml.nvmlClocksEventReasonHwSlowdown
SW_THERMAL: Final[int] = pynvml.nvmlClocksEventReasonSwThermalSlowdown
HW_THERMAL: Final[int] = pynvml.nvmlClocksEventReasonHwThermalSlowdown
POWER_BRAKE: Final[int] = pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown

_SETTLE_SECONDS: Final = 90
_INLET_CELSIUS = 27.0
_POWER_EXPONENT = 2.2  # dynamic power over clock: voltage falls with the clock
_CLOCK_STEP_MHZ = 15
_BACKGROUND_SECONDS = (6 * 3600, 4 * 3600, 12 * 3600)  # between corrected bits, replays, bad flits
_HARDWARE_SLOWDOWN_SHARE = 0.5  # the vendor: "reduced by a factor of 2 or more"


class State(NamedTuple):
    """One second of a GPU. energy_joules is at the second's start; counters are totals."""

    utilization: float
    memory_utilization: float
    power_watts: float
    temperature_celsius: float
    memory_temperature_celsius: float
    sm_clock_mhz: int
    reasons: int
    energy_joules: float
    framebuffer_bytes: int
    ecc_corrected: int
    pcie_replays: int
    nvlink_crc: int
    context: bool


class GpuPhysics:
    """A board in a slot. `at` is safe from many threads; each second is computed once."""

    def __init__(self, world: World, index: int) -> None:
        self._world, self.index = world, index
        self._key = noise.mix(world.key, index)
        self._lock = threading.Lock()
        self._second = -_SETTLE_SECONDS
        profile = world.profile
        self._silicon = 1 + 0.012 * noise.normal(self._key, 1)
        self._resistance = profile.thermal_resistance * (1 + 0.02 * noise.normal(self._key, 2))
        node = noise.normal(world.key, 3)
        self._ambient = _INLET_CELSIUS + node + 1.2 * (index % 4) + 0.3 * noise.normal(self._key, 3)
        self._warmth = 1 - math.exp(-1 / profile.thermal_lag_seconds)
        self._thermal_share = 1.0
        self._temperature = self._ambient + self._resistance * profile.power_idle_watts
        if world.load(0).context:
            self._temperature = self._ambient + self._resistance * profile.power_training_watts * 0.9
        self._counts = [0, int(12 * noise.uniform(self._key, 4)), 0]
        self._state = self._step(self._second, 3.6e6 * noise.uniform(self._key, 5) * 100)

    def at(self, now_ns: int) -> State:
        """Return the state of the second that holds this instant; before the start, the settled one."""
        wanted = self._world.second(now_ns)
        with self._lock:
            while self._second < wanted:
                self._second += 1
                self._state = self._step(self._second, self._state.energy_joules + self._state.power_watts)
            return self._state

    def _step(self, second: int, energy_joules: float) -> State:
        load = self._world.load(second)
        now_ns = self._world.start_ns + second * 1_000_000_000
        demand = self._demand_watts(load, second)
        clock_share, reasons = self._clocks(load, demand, now_ns)
        base = self._world.profile.power_context_watts
        power = demand if demand <= base else base + (demand - base) * clock_share**_POWER_EXPONENT
        power *= 1 + 0.003 * noise.normal(self._key, second, 3)  # the regulator hunts around its limit
        self._heat(power, now_ns)
        self._background(second)
        return self._state_of(load, second, power, clock_share, reasons, energy_joules)

    def _demand_watts(self, load: Load, second: int) -> float:
        """What the board would draw at its highest clock."""
        profile = self._world.profile
        if not load.context:
            return profile.power_idle_watts * (self._silicon + 0.01 * noise.normal(self._key, second, 1))
        active = min(1.0, load.compute + 0.12 * load.communication)
        span = (profile.power_training_watts - profile.power_context_watts) * active
        wobble = 1 + 0.012 * noise.normal(self._key, second, 1)
        return self._silicon * wobble * (profile.power_context_watts + span)

    def _clocks(self, load: Load, demand_watts: float, now_ns: int) -> tuple[float, int]:
        """The share of the highest clock that all limits together leave, and NVML's reasons for it."""
        profile = self._world.profile
        if not load.context:
            return profile.sm_clock_idle_mhz / profile.sm_clock_max_mhz, GPU_IDLE
        share, reasons = 1.0, 0
        base = profile.power_context_watts
        if demand_watts > profile.power_limit_watts:
            over = (profile.power_limit_watts - base) / (demand_watts - base)
            share, reasons = over ** (1 / _POWER_EXPONENT), SW_POWER_CAP
        thermal, thermal_reasons = self._thermal_limit()
        share, reasons = min(share, thermal), reasons | thermal_reasons
        for _, brake in self._world.active(PowerBrake, now_ns):
            if brake.gpu == self.index:
                share, reasons = min(share, brake.clock_share), reasons | POWER_BRAKE | HW_SLOWDOWN
        return share, reasons

    def _thermal_limit(self) -> tuple[float, int]:
        """The driver's controller: give way above the operating limit, come back slowly below it."""
        profile = self._world.profile
        over = self._temperature - profile.temperature_operating_celsius
        change = -0.03 * over if over > 0 else 0.015
        self._thermal_share = min(1.0, max(0.3, self._thermal_share + change))
        if self._temperature >= profile.temperature_slowdown_celsius:
            return min(self._thermal_share, _HARDWARE_SLOWDOWN_SHARE), SW_THERMAL | HW_THERMAL | HW_SLOWDOWN
        return self._thermal_share, SW_THERMAL if self._thermal_share < 1.0 else 0

    def _heat(self, power_watts: float, now_ns: int) -> None:
        resistance = self._resistance
        for _, fault in self._world.active(ThermalThrottle, now_ns):
            if fault.gpu == self.index:
                resistance *= fault.resistance_factor
        target = self._ambient + resistance * power_watts
        self._temperature += (target - self._temperature) * self._warmth

    def _background(self, second: int) -> None:
        """What a healthy board counts: a corrected bit, a replay and a bad flit, each once in hours."""
        for place, mean_seconds in enumerate(_BACKGROUND_SECONDS):
            self._counts[place] += noise.mix(self._key, second, 7 + place) % mean_seconds == 0

    def _state_of(
        self, load: Load, second: int, power: float, share: float, reasons: int, energy_joules: float
    ) -> State:
        profile = self._world.profile
        busy = load.compute * (1 + 0.012 * noise.normal(self._key, second, 2)) + 0.2 * load.communication
        clock = int(profile.sm_clock_max_mhz * share / _CLOCK_STEP_MHZ + 0.5) * _CLOCK_STEP_MHZ
        memory_heat = profile.memory_over_core_celsius * (0.4 + 0.6 * load.compute)
        used = profile.memory_reserved_bytes
        if load.context:
            held = 0.86 + 0.02 * noise.uniform(self._key, 6) + 0.004 * noise.uniform(self._key, second // 20)
            used += int(profile.memory_bytes * held)
        return State(
            utilization=min(1.0, busy),
            memory_utilization=min(1.0, 0.62 * busy),
            power_watts=power,
            temperature_celsius=self._temperature,
            memory_temperature_celsius=self._temperature + memory_heat,
            sm_clock_mhz=clock,
            reasons=reasons,
            energy_joules=energy_joules,
            framebuffer_bytes=used,
            ecc_corrected=self._counts[0],
            pcie_replays=self._counts[1],
            nvlink_crc=self._counts[2],
            context=load.context,
        )
