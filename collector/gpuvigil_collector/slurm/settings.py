"""The collector's `[slurm]` section."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gpuvigil_collector.slurm.verdict import Place
from gpuvigil_protos.settings import ConfigError, Seconds


class SlurmSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """How Slurm is read and told, where `remediation.scheduler` is "slurm".

    interval, deadline: of one reading of everything. stale: an older reading counts as none, and denies.
    call: the most that one change may last; half of what is left of the lease bounds it too. folder: where
    Slurm's programs are when not in the usual places (/opt/slurm/bin).
    exclude_node: a job that is moved never comes back to the node (ExcNodeList), held or not. opt_in: which
    jobs may be stopped only where their comment says gpuvigil:movable: arrays and het jobs, or all.
    verdict_key: PEM file of the Ed25519 key that signs what a held node's scripts read; "" for no verdicts.
    verdict_at: the scripts that refuse work.
    """

    folder: str = ""
    interval: Seconds = Seconds(10)
    deadline: Seconds = Seconds(15)
    stale: Seconds = Seconds(60)
    call: Seconds = Seconds(30)
    exclude_node: bool = False
    opt_in: Literal["kinds", "all"] = "kinds"
    verdict_key: str = ""
    verdict_at: Annotated[tuple[Place, ...], msgspec.Meta(min_length=1)] = ("prolog",)

    def check(self, origin: str) -> None:
        """Raise ConfigError for numbers that make no sense together."""
        for name in ("folder", "verdict_key"):
            if (path := getattr(self, name)) and not path.startswith("/"):
                raise ConfigError(f"{origin}: {name}: expected a full path, got {path!r}")
        if len(set(self.verdict_at)) != len(self.verdict_at):
            raise ConfigError(f"{origin}: verdict_at: expected each place once, got {list(self.verdict_at)}")
        for name in ("interval", "deadline", "call"):
            if not 1 <= getattr(self, name) <= 600:
                got = getattr(self, name)
                raise ConfigError(f'{origin}: {name}: expected "1s" to "10min", got {got:g} s')
        if self.stale < self.interval + self.deadline:
            least = self.interval + self.deadline
            raise ConfigError(
                f"{origin}: stale: expected at least interval + deadline ({least:g} s), got {self.stale:g} s"
            )
