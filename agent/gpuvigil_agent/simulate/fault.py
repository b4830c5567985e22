"""What every fault of a scenario shares: fields, class, limit, and which process feels it."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from gpuvigil_protos.settings import Seconds

Where = Literal["driver", "host", "job"]


class Fault(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What all faults share. `at` counts from the start; no duration means until the end.

    fault_class is the class an honest incident has; limit_s the time in which it can be found; where says
    which process feels it and so writes the truth; silent means that no incident may come of it.
    """

    fault_class: ClassVar[str]
    limit_s: ClassVar[int]
    where: ClassVar[Where]
    silent: ClassVar[bool] = False

    kind: str
    node: str | int
    at: Seconds
    duration: Seconds | None = None


class GpuFault(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A fault of one GPU, named by its index when the scenario starts."""

    where = "driver"
    gpu: int = msgspec.field()
