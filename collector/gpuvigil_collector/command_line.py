"""The collector's own arguments; the operator's commands are gpuvigil_cli's."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpuvigil_collector import policy, site
from gpuvigil_collector.config import CollectorConfig, load
from gpuvigil_collector.web import roles
from gpuvigil_protos.settings import ConfigError

DEFAULT_CONFIG = Path("/etc/gpuvigil/collector.toml")


class Arguments(argparse.Namespace):
    """What the command line said."""

    config: Path | None
    check_config: bool
    overrides: list[str]

    def load(self) -> CollectorConfig:
        """Read the config that the arguments name. Raises ConfigError."""
        path = self.config
        if path is None and DEFAULT_CONFIG.exists():
            path = DEFAULT_CONFIG
        return load(path, self.overrides)


def parse(arguments: list[str] | None) -> Arguments:
    """Parse; a wrong argument ends the process with status 2 and a line that says why."""
    parser = argparse.ArgumentParser(
        prog="gpuvigil-collector", description="Takes the agents' streams, finds what is wrong, and says why."
    )
    parser.add_argument(
        "--config", type=Path, help=f"config file (default: {DEFAULT_CONFIG} where it exists)"
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="print the effective config and stop; status 2 if it is wrong",
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="a.b=VALUE",
        help="override one key of the file; VALUE as in TOML, or plain text",
    )  # fmt: skip
    return parser.parse_args(arguments, namespace=Arguments())


def check_named_files(config: CollectorConfig) -> None:
    """Read the files that the config names beside the certificates. Raises ConfigError with the key."""
    helper = config.actuators.helper
    readers = (
        ("remediation.policy", config.remediation.policy, policy.load),
        ("remediation.site", config.remediation.site, site.load),
        ("web.tokens", config.web.tokens, roles.read),
        ("actuators.helper.key", helper.key if helper else "", Path.read_bytes),
    )
    for key, name, read in readers:
        try:
            if name:
                read(Path(name))
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"{key}: {name} cannot be read: {why}") from None
