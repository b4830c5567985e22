"""HelperConfig: everything the helper can be told, one TOML file that root alone writes.

The limits can be lowered here and never raised: the types refuse more.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from gpuvigil_protos import pause, settings
from gpuvigil_protos.entity import is_valid_node_name
from gpuvigil_protos.settings import ConfigError, Seconds

DEFAULT: Final = Path("/etc/gpuvigil/helper.toml")
RESETS_AN_HOUR: Final = 1
REBOOTS_A_DAY: Final = 2
STOPS_AN_HOUR: Final = 6
_ARGUMENTS_MAX: Final = 40

Argv = tuple[str, ...]
# in a unit of its own: the helper itself has neither the driver's devices nor the rights
_APART: Final = ("systemd-run", "--wait", "--pipe", "--collect", "--quiet", "--service-type=exec")


class Limits(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The node's own limits, whoever asks."""

    resets_a_gpu_an_hour: Annotated[int, msgspec.Meta(ge=0, le=RESETS_AN_HOUR)] = RESETS_AN_HOUR
    reboots_a_day: Annotated[int, msgspec.Meta(ge=0, le=REBOOTS_A_DAY)] = REBOOTS_A_DAY
    stops_an_hour: Annotated[int, msgspec.Meta(ge=0, le=STOPS_AN_HOUR)] = STOPS_AN_HOUR


class Protected(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What is never interrupted: units by pattern, and paths (patterns) that exist while such a job runs."""

    units: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


class Stop(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """stop_unit: which units at all, as a regular expression over the whole name; empty: none."""

    allow: str = ""
    command: Argv = ("systemctl", "stop", "--", "{unit}")
    deadline: Seconds = Seconds(120)


class Reset(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """reset_gpu. let_go: units that hold every GPU, stopped before and started afterwards if they ran.

    devices: patterns of the device files that nobody may hold. links, capability, fabric_manager: commands
    that tell whether NVLink forbids the reset of one GPU alone.
    """

    command: Argv = (*_APART, "nvidia-smi", "--gpu-reset", "-i", "{gpu}")
    evidence: Argv = (*_APART, "nvidia-smi", "-q", "-i", "{gpu}")
    links: Argv = (*_APART, "nvidia-smi", "nvlink", "--status", "-i", "{gpu}")
    capability: Argv = (
        *_APART,
        "nvidia-smi",
        "--query-gpu=compute_cap",
        "--format=csv,noheader",
        "-i",
        "{gpu}",
    )
    fabric_manager: Argv = ("systemctl", "is-active", "nvidia-fabricmanager.service")
    let_go: tuple[str, ...] = ("nvidia-dcgm.service", "dcgm-exporter.service", "nvidia-persistenced.service")
    devices: tuple[str, ...] = ("/dev/nvidia[0-9]*",)
    deadline: Seconds = Seconds(120)


class Reboot(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """reboot: the command only starts it."""

    command: Argv = ("systemctl", "reboot")
    deadline: Seconds = Seconds(30)


class HelperConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The whole file. act false: orders are checked and answered with what would be done; nothing is.

    agent_user: whose connections are taken, by name or number. key: the collector's public key, PEM. socket:
    "" when systemd hands one over.
    """

    act: bool = False
    node: str = ""
    key: str = "/etc/gpuvigil/collector.pub"
    agent_user: str = "gpuvigil-agent"
    socket: str = ""
    state_directory: str = "/var/lib/gpuvigil-helper"
    pause_files: tuple[str, ...] = pause.FILES
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    systemctl: Argv = ("systemctl",)
    limits: Limits = Limits()
    protected: Protected = Protected()
    stop: Stop = Stop()
    reset: Reset = Reset()
    reboot: Reboot = Reboot()


def load(path: Path | None) -> HelperConfig:
    """Read and check the file; without one the defaults hold. Raises ConfigError."""
    origin = str(path) if path is not None else "defaults"
    config = settings.convert(settings.read(path) if path is not None else {}, HelperConfig, origin)
    if config.node and not is_valid_node_name(config.node):
        raise ConfigError(f"{origin}: node: expected a host name, got {config.node!r}")
    try:
        re.compile(config.stop.allow)
    except (re.error, RecursionError) as error:
        raise ConfigError(f"{origin}: stop.allow: expected a regular expression: {error}") from None
    for key, argv in (
        ("systemctl", config.systemctl), ("stop.command", config.stop.command),
        ("reset.command", config.reset.command), ("reset.evidence", config.reset.evidence),
        ("reset.links", config.reset.links), ("reset.capability", config.reset.capability),
        ("reset.fabric_manager", config.reset.fabric_manager), ("reboot.command", config.reboot.command),
    ):  # fmt: skip
        if not argv or len(argv) > _ARGUMENTS_MAX or not all(word.isprintable() and word for word in argv):
            raise ConfigError(f"{origin}: {key}: expected 1 to {_ARGUMENTS_MAX} words, got {len(argv)}")
    for key, seconds in (
        ("stop", config.stop.deadline), ("reset", config.reset.deadline), ("reboot", config.reboot.deadline)
    ):  # fmt: skip
        if not 1 <= seconds <= 600:
            raise ConfigError(f"{origin}: {key}.deadline: expected 1s to 600s, got {seconds:g}s")
    return config
