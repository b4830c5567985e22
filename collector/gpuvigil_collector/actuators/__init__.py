"""The ways to have an effect. execute.py alone may import this package (an import contract says so).

A new one is one file with one `make`, one row in ACTUATORS, and one row in the contract battery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gpuvigil_collector.action import Actuator
from gpuvigil_collector.actuators import command, helper, slurm, supervisor, validate, webhook
from gpuvigil_collector.actuators.tools import ToolFields as ToolFields
from gpuvigil_collector.actuators.tools import Tools as Tools
from gpuvigil_protos.settings import ConfigError

Maker = Callable[[Tools], Iterable[Actuator]]
"""Makes what the settings ask for; nothing where they do not."""


def _kubernetes(tools: Tools) -> Iterable[Actuator]:
    """Made only where it is configured: its libraries are an extra. Raises ConfigError."""
    if tools.settings.kubernetes is None:
        return ()
    try:
        from gpuvigil_collector.actuators import kubernetes  # noqa: PLC0415 - as said above
    except ImportError as error:
        raise ConfigError(f"kubernetes: {error}: pip install 'gpuvigil[kubernetes]'") from None
    return kubernetes.make(tools, tools.settings.kubernetes)


ACTUATORS: Final[Mapping[str, Maker]] = {
    "webhook": webhook.make,
    "command": command.make,
    "slurm": slurm.make,
    "helper": helper.make,
    "supervisor": supervisor.make,
    "validate": validate.make,
    "kubernetes": _kubernetes,
}
"""In this order they are asked whether they have an action's kind."""
