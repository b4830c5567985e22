"""What a GPU model is: vendor facts and field figures, one TOML file a model in profiles/."""

from __future__ import annotations

from importlib.resources import as_file, files

import msgspec

from gpuvigil_protos import settings


class Profile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One GPU model. Units are in the names; thermal_resistance is kelvin per watt."""

    model: str
    driver_version: str
    memory_bytes: int
    memory_reserved_bytes: int
    power_limit_watts: float
    power_idle_watts: float
    power_context_watts: float
    power_training_watts: float
    sm_clock_max_mhz: int
    sm_clock_idle_mhz: int
    memory_clock_mhz: int
    pcie_generation: int
    pcie_width: int
    nvlinks: int
    temperature_operating_celsius: float
    temperature_slowdown_celsius: float
    temperature_shutdown_celsius: float
    thermal_resistance: float
    thermal_lag_seconds: float
    memory_over_core_celsius: float
    supports_recovery_action: bool
    pci_buses: list[int]
    pci_device_id: int
    pci_subsystem_id: int


def load_profile(name: str) -> Profile:
    """Read a shipped profile: h100 or a100. Raises ConfigError when the file is missing or wrong."""
    with as_file(files(__package__) / "profiles" / f"{name}.toml") as path:
        return settings.load(path, Profile)
