"""CollectorConfig: everything the collector can be told, one TOML file, unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from gpuvigil_collector.actuator_config import ActuatorSettings
from gpuvigil_collector.alerting.settings import AlertingConfig
from gpuvigil_collector.ingest.settings import IngestConfig
from gpuvigil_collector.repair.settings import Remediation
from gpuvigil_collector.slurm.settings import SlurmSettings
from gpuvigil_protos import settings
from gpuvigil_protos.settings import ConfigError, Seconds, Tls, is_loopback


class Web(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The API and the metrics endpoint. Off loopback it needs TLS or `insecure = true`.

    tokens: a file of who may write (web/roles.py); `admin.token` of the state directory may always.
    """

    address: str = "127.0.0.1:9512"
    insecure: bool = False
    connections_max: int = 200
    tokens: str = ""
    tls: Tls = Tls()


class Detection(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Which detectors judge. votes: PyOD models by name (extra `pyod`), none by default.

    learn: how long the statistical detectors only learn before they notify anyone.
    """

    statistical: bool = True
    votes: list[Literal["ecod", "copod", "hbos", "pca", "knn"]] = msgspec.field(default_factory=list)
    learn: Seconds = Seconds(3600)
    state_save_interval: Seconds = Seconds(300)


class IncidentSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """When incidents resolve and reopen, and how many are held in memory.

    node_max: open incidents of one node; what goes beyond is one more incident of that node.
    """

    clear_after: Seconds = Seconds(30)
    reopen_within: Seconds = Seconds(300)
    restore_grace: Seconds = Seconds(120)
    open_max: int = 1000
    node_max: int = 50
    resolved_max: int = 1000
    findings_max: int = 50


class Nodes(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """forget_after: a node that has been silent for so long was decommissioned."""

    forget_after: Seconds = Seconds(7 * 86400)


class JournalSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The SQLite journal in the state directory: how much and how long it keeps.

    anchor: the file that gets its head each minute, "" for journal.anchor in the state directory.
    """

    entries_max: int = 200_000
    keep: Seconds = Seconds(90 * 86400)
    anchor: str = ""


class Tick(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The brain's pace: once an interval, and at once on an event, but not closer than event_spacing."""

    interval: Seconds = Seconds(1)
    event_spacing: Seconds = Seconds(0.1)


class SaveSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Checkpoints on request, of jobs that have opted in. requests: off, operator (a person asks), or auto
    (and hardware that begins to fail under a job).

    interval: between two requests to one job; deadline: how long a save may take before it is given up.
    evidence: ask a job that makes no step for stacks and its records of collectives, opted in or not: it only
    looks. evidence_interval: between two such requests to one job.
    """

    requests: Literal["off", "operator", "auto"] = "operator"
    interval: Seconds = Seconds(60)
    deadline: Seconds = Seconds(600)
    evidence: bool = True
    evidence_interval: Seconds = Seconds(120)


class CollectorConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The whole file."""

    state_directory: str = "/var/lib/gpuvigil-collector"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    ingest: IngestConfig = IngestConfig()
    web: Web = Web()
    tick: Tick = Tick()
    detection: Detection = Detection()
    incidents: IncidentSettings = IncidentSettings()
    journal: JournalSettings = JournalSettings()
    nodes: Nodes = Nodes()
    saves: SaveSettings = SaveSettings()
    remediation: Remediation = Remediation()
    actuators: ActuatorSettings = ActuatorSettings()
    slurm: SlurmSettings = SlurmSettings()
    alerting: AlertingConfig = AlertingConfig()


RELOADABLE = ("log_level", "incidents", "journal")


def load(path: Path | None, overrides: list[str]) -> CollectorConfig:
    """Read the file (none: all defaults) with `a.b=value` overrides on top. Raises ConfigError."""
    raw = settings.read(path) if path is not None else {}
    for override in overrides:
        settings.override(raw, override)
    origin = str(path) if path is not None else "command line"
    config = settings.convert(raw, CollectorConfig, origin)
    _check(config, origin)
    return config


def _check(config: CollectorConfig, origin: str) -> None:
    config.ingest.check(origin)
    config.remediation.check(origin)
    if config.remediation.scheduler == "kubernetes" and config.actuators.kubernetes is None:
        raise ConfigError(f"{origin}: actuators.kubernetes: expected a table, as remediation.scheduler says")
    config.slurm.check(f"{origin}: slurm")
    config.web.tls.check(f"{origin}: web")
    config.alerting.check(origin)
    split_address(config.web.address, f"{origin}: web.address")
    split_address(config.ingest.address, f"{origin}: ingest.address")
    if not is_loopback(config.web.address) and not (config.web.tls.enabled or config.web.insecure):
        raise ConfigError(
            f"{origin}: web.address: {config.web.address} is not on loopback: expected web.tls files, or "
            "web.insecure = true to serve in plain text all the same"
        )
    for name in ("open_max", "node_max", "resolved_max", "findings_max"):
        _at_least_one(getattr(config.incidents, name), f"{origin}: incidents.{name}")
    _at_least_one(config.journal.entries_max, f"{origin}: journal.entries_max")
    _at_least_one(config.web.connections_max, f"{origin}: web.connections_max")
    if config.nodes.forget_after < 3600:
        got = f"{config.nodes.forget_after:g} s"
        raise ConfigError(f'{origin}: nodes.forget_after: expected at least "1h", got {got}')
    if config.saves.evidence_interval < 10:
        got = f"{config.saves.evidence_interval:g} s"
        raise ConfigError(f'{origin}: saves.evidence_interval: expected at least "10s", got {got}')
    if not 0.1 <= config.tick.interval <= 60:
        got = f"{config.tick.interval:g} s"
        raise ConfigError(f'{origin}: tick.interval: expected "100ms" to "1min", got {got}')
    if not 0 < config.tick.event_spacing <= 1:
        got = f"{config.tick.event_spacing:g} s"
        raise ConfigError(f'{origin}: tick.event_spacing: expected up to "1s", got {got}')


def _at_least_one(value: int, where: str) -> None:
    if value < 1:
        raise ConfigError(f"{where}: expected a whole number of at least 1, got {value}")


def split_address(address: str, where: str) -> tuple[str, int]:
    """Split `host:port`. Raises ConfigError that names `where`."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f'{where}: expected host:port such as "127.0.0.1:9512", got "{address}"')
    return host.strip("[]"), int(port)
