"""The ways to have an effect. execute.py alone may import this package (an import contract says so).

A new one is one file with one `make`, one row in ACTUATORS, and one row in the contract battery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gpuvigil_collector.action import Actuator
from gpuvigil_collector.actuators import command, slurm, validate, webhook
from gpuvigil_collector.actuators.tools import ToolFields as ToolFields
from gpuvigil_collector.actuators.tools import Tools as Tools

Maker = Callable[[Tools], Iterable[Actuator]]
"""Makes what the settings ask for; nothing where they do not."""

ACTUATORS: Final[Mapping[str, Maker]] = {
    "webhook": webhook.make,
    "command": command.make,
    "slurm": slurm.make,
    "validate": validate.make,
}
"""In this order they are asked whether they have an action's kind."""
