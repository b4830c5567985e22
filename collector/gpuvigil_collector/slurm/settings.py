"""The collector's `[slurm]` section."""

from __future__ import annotations

from typing import Literal

import msgspec

from gpuvigil_protos.settings import ConfigError, Seconds


class SlurmSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """How Slurm is read and told, where `remediation.scheduler` is "slurm".

    interval, deadline: of one reading of everything. stale: an older reading counts as none, and denies.
    call: the most that one change may last; half of what is left of the lease bounds it too. folder: where
    Slurm's programs are when not in the usual places (/opt/slurm/bin).
    exclude_node: a job that is moved never comes back to the node (ExcNodeList), held or not. opt_in: which
    jobs may be stopped only where their comment says gpuvigil:movable: arrays and het jobs, or all.
    """

    folder: str = ""
    interval: Seconds = Seconds(10)
    deadline: Seconds = Seconds(15)
    stale: Seconds = Seconds(60)
    call: Seconds = Seconds(30)
    exclude_node: bool = False
    opt_in: Literal["kinds", "all"] = "kinds"

    def check(self, origin: str) -> None:
        """Raise ConfigError for numbers that make no sense together."""
        if self.folder and not self.folder.startswith("/"):
            raise ConfigError(f"{origin}: folder: expected a full path, got {self.folder!r}")
        for name in ("interval", "deadline", "call"):
            if not 1 <= getattr(self, name) <= 600:
                got = getattr(self, name)
                raise ConfigError(f'{origin}: {name}: expected "1s" to "10min", got {got:g} s')
        if self.stale < self.interval + self.deadline:
            least = self.interval + self.deadline
            raise ConfigError(
                f"{origin}: stale: expected at least interval + deadline ({least:g} s), got {self.stale:g} s"
            )
