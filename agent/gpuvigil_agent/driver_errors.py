"""What the driver can refuse, in words of its own, so that samplers need no import of pynvml."""

from __future__ import annotations


class DriverError(Exception):
    """A driver call that failed for a reason without a name of its own. `call` is the NVML function."""

    def __init__(self, call: str, reason: str) -> None:
        super().__init__(f"{call}: {reason}")
        self.call = call


class NotSupported(DriverError):  # noqa: N818 - NVML's own word
    """The board, driver or permission gives no such reading, or gave a blank: leave the series out."""


class GpuLost(DriverError):  # noqa: N818 - NVML's own word
    """The GPU has fallen off the bus or is no longer there: all its series cease at once."""


class DriverAbsent(DriverError):  # noqa: N818 - a state of the node
    """No library, no kernel module, the two do not fit, or the driver was unloaded under us."""


class OverBudget(DriverError):  # noqa: N818 - a state of the agent
    """The agent's own bound on driver calls per second is reached: this reading is left out."""


class BadArgument(DriverError):  # noqa: N818 - NVML's own word
    """The driver knows no such link, counter or handle (any more)."""


class WaitTimeout(DriverError):  # noqa: N818 - not an error of anyone
    """Nothing came while waiting for events."""
