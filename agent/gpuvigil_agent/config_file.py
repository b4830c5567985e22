"""The agent's config: file and command line to AgentConfig, checked whole, and what a reload may change."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_agent.config import AgentConfig
from gpuvigil_protos import settings
from gpuvigil_protos.entity import is_valid_job
from gpuvigil_protos.settings import ConfigError

DEFAULT: Final = Path("/etc/gpuvigil/agent.toml")
LIVE_KEYS: Final = frozenset({"log_level", "collector", "tls", "host"})
"""Tables and keys that a reload applies; every other changed key waits for a restart."""

_TEXT_MAX: Final = 4096  # the longest path
_SPOOL_MIN, _SPOOL_MAX = 1 << 20, 1 << 50
_LOG_MIN, _LOG_MAX = 4 << 10, 1 << 30
_LABEL: Final = r"[A-Za-z0-9_-]{1,63}"
_ADDRESS: Final = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL}){{0,9}}|\[[0-9A-Fa-f:.%]{{2,45}}\]):([0-9]{{1,5}})\Z"
)


def load(path: Path | None, overrides: list[str]) -> AgentConfig:
    """Read file and `--set` overrides into a checked config. Without a file the defaults hold.

    Raises ConfigError: one line with file, key, expected, got and the nearest key.
    """
    raw = settings.read(path) if path is not None else {}
    for override in overrides:
        settings.override(raw, override)
    origin = str(path) if path is not None else "defaults"
    config = settings.convert(raw, AgentConfig, origin)
    check(config, origin)
    return config


def settle(config: AgentConfig, node: str) -> AgentConfig:
    """Fill in what every part must agree on: the node's name and the simulation's start."""
    start_ns = config.simulate.start_ns or (time.time_ns() if config.gpu.source == "simulated" else 0)
    simulate = msgspec.structs.replace(config.simulate, start_ns=start_ns)
    return msgspec.structs.replace(config, node=node, simulate=simulate)


def check(config: AgentConfig, origin: str) -> None:
    """Refuse what each key alone cannot show. Raises ConfigError."""
    check_values(config, origin)
    config.tls.check(origin)


def check_values(config: AgentConfig, origin: str) -> None:
    """Check the values alone and read no file. Raises ConfigError."""
    for name, text in _texts(config, ""):
        if not text.isprintable() or len(text) > _TEXT_MAX:
            raise ConfigError(f"{origin}: {name}: expected printable text of at most {_TEXT_MAX} characters")
    if not config.state_directory:
        raise ConfigError(f"{origin}: state_directory: expected a directory, got nothing")
    _check_address(config.collector.address, f"{origin}: collector.address", 1)
    if config.metrics.address:
        _check_address(config.metrics.address, f"{origin}: metrics.address", 0)
    if not config.tls.enabled and not settings.is_loopback(config.collector.address):
        raise ConfigError(
            f"{origin}: collector.address: without [tls] expected loopback, because plain text never leaves "
            f"this machine, got {config.collector.address!r}; name tls.certificate, tls.key and tls.ca"
        )
    _check_numbers(config, origin)
    for point in config.host.filesystems:
        if not point.startswith("/"):
            raise ConfigError(f"{origin}: host.filesystems: expected absolute paths, got {point!r}")
    _check_jobs(config, origin)


def _check_jobs(config: AgentConfig, origin: str) -> None:
    for name, job in config.supervisor.jobs.items():
        where = f"{origin}: supervisor.jobs.{name[:64]!r}"
        if not is_valid_job(name):
            raise ConfigError(f"{where}: expected a job's name: letters, digits and ._:+-")
        texts = [*job.command, *job.environment, *job.environment.values(), job.directory, job.checkpoints]
        if any("\0" in text or len(text) > _TEXT_MAX for text in texts):
            raise ConfigError(f"{where}: expected texts of at most {_TEXT_MAX} characters, no zero bytes")
        for key in job.environment:
            if not key.isidentifier():
                raise ConfigError(
                    f"{where}: environment: expected names such as MASTER_PORT, got {key[:64]!r}"
                )
        if not job.directory.startswith("/"):
            raise ConfigError(f"{where}: directory: expected an absolute path, got {job.directory!r}")
        if not 0 <= job.grace <= 600:
            raise ConfigError(f"{where}: grace: expected 0s to 600s, got {job.grace:g}s")
        if not _LOG_MIN <= job.log_max <= _LOG_MAX:
            raise ConfigError(f"{where}: log_max: expected 4KiB to 1GiB, got {job.log_max}B")


def _texts(table: msgspec.Struct, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in msgspec.structs.asdict(table).items():
        if isinstance(value, msgspec.Struct):
            yield from _texts(value, f"{prefix}{key}.")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield f"{prefix}{key}", text


def _check_numbers(config: AgentConfig, origin: str) -> None:
    for key, seconds, low, high in (
        ("collector.flush_interval", config.collector.flush_interval, 0.1, 3600),
        ("collector.connect_timeout", config.collector.connect_timeout, 0.1, 3600),
        ("collector.backoff_max", config.collector.backoff_max, 0.1, 3600),
        ("spool.sync_interval", config.spool.sync_interval, 0.0, 3600),
        ("gpu.call_deadline", config.gpu.call_deadline, 0.1, 60),
    ):
        if not low <= seconds <= high:
            raise ConfigError(f"{origin}: {key}: expected {low:g}s to {high:g}s, got {seconds:g}s")
    if not _SPOOL_MIN <= config.spool.size_max <= _SPOOL_MAX:
        raise ConfigError(f"{origin}: spool.size_max: expected 1MiB to 1024TiB, got {config.spool.size_max}B")


def _check_address(address: str, where: str, port_min: int) -> None:
    found = _ADDRESS.match(address)
    if found is None or not port_min <= int(found[1]) <= 65535:
        raise ConfigError(f"{where}: expected host:port, got {address!r}")


def changed_keys(old: AgentConfig, new: AgentConfig) -> list[str]:
    """Return the dotted names of keys that differ."""
    found: list[str] = []
    for field in msgspec.structs.fields(AgentConfig):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if isinstance(before, msgspec.Struct):
            found += [
                f"{field.name}.{inner.name}" for inner in msgspec.structs.fields(type(before))
                if getattr(before, inner.name) != getattr(after, inner.name)
            ]  # fmt: skip
        elif before != after:
            found.append(field.name)
    return found


def merge_live(old: AgentConfig, new: AgentConfig) -> tuple[AgentConfig, list[str], list[str]]:
    """Return the config to run with from now on, the keys applied, and those that need a restart."""
    start_ns = new.simulate.start_ns or old.simulate.start_ns
    simulate = msgspec.structs.replace(new.simulate, start_ns=start_ns)
    changed = changed_keys(old, msgspec.structs.replace(new, node=new.node or old.node, simulate=simulate))
    applied = [key for key in changed if key.partition(".")[0] in LIVE_KEYS and key != "host.kernel_log"]
    waiting = [key for key in changed if key not in applied]
    merged = msgspec.structs.replace(
        old, log_level=new.log_level, collector=new.collector, tls=new.tls,
        host=msgspec.structs.replace(old.host, filesystems=new.host.filesystems),
    )  # fmt: skip
    return merged, applied, waiting
