"""Reset of one GPU: may it be alone, evidence, everybody lets go, nobody holds it, reset, all back again.

NVLink's rule as the manual page of nvidia-smi has it (--gpu-reset): from Ampere on a GPU with NVLink can be
reset alone; on Ampere the fabric manager must run for that where there is one, before Ampere all linked
GPUs go together. A GPU whose links or generation nobody tells is not reset.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gpuvigil_helper import tools
from gpuvigil_helper.config import HelperConfig
from gpuvigil_helper.holders import holders
from gpuvigil_helper.ledger import EffectState, Ledger
from gpuvigil_protos import log
from gpuvigil_protos.order import Order

_LOOK_S: Final = 20.0
_FREE_WITHIN_S: Final = 5.0  # a process that ended may take a moment to close the device
_AMPERE, _HOPPER = 8, 9
_LINK: Final = re.compile(r"^\s*Link \d+: ([0-9.]+) GB/s", re.MULTILINE)
_NO_LINKS: Final = re.compile(r"^GPU \d+: |inactive", re.MULTILINE)
_CAPABILITY: Final = re.compile(r"\s*(\d{1,2})\.\d\s*\Z")
_EVIDENCE_KEPT: Final = 50
_log = log.get("reset")


class Reset:
    """One GPU at a time; what was let go is in the ledger, so that it comes back after a crash too."""

    def __init__(self, config: HelperConfig, ledger: Ledger) -> None:
        self._config, self._ledger = config, ledger
        self._folder = Path(config.state_directory) / "evidence"

    def forbidden(self, gpu: str) -> str:
        """Return why this GPU may not be reset alone, "" when it may."""
        settings = self._config.reset
        ran = tools.run(settings.links, {"gpu": gpu}, _LOOK_S)
        linked = bool(_LINK.search(ran.output))
        if ran.status != 0 or not (linked or not ran.output.strip() or _NO_LINKS.search(ran.output)):
            return f"whether {gpu} has NVLink cannot be told: {ran.words}"
        if not linked:
            return ""
        ran = tools.run(settings.capability, {"gpu": gpu}, _LOOK_S)
        found = _CAPABILITY.match(ran.output)
        if ran.status != 0 or found is None:
            return f"the generation of {gpu} cannot be told: {ran.words}"
        major = int(found[1])
        if major < _AMPERE:
            return f"{gpu} is linked by NVLink and older than Ampere: it cannot be reset alone"
        if major < _HOPPER and tools.run(settings.fabric_manager, {}, _LOOK_S).status != 0:
            return f"{gpu} is linked by NVLink and the fabric manager does not run: it cannot be reset alone"
        return ""

    def keep_evidence(self, order: Order) -> None:
        """Write down what the driver says of the GPU, before. Raises OSError: then there is no reset.

        A GPU that no longer answers is evidence too: what the command said is kept.
        """
        ran = tools.run(self._config.reset.evidence, {"gpu": order.target}, _LOOK_S)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        old = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for stale in old[: max(0, len(old) - _EVIDENCE_KEPT + 1)]:
            stale.unlink(missing_ok=True)
        with (self._folder / f"{order.nonce}.txt").open("w", encoding="utf-8") as file:
            file.write(f"{order.action} {order.incident} {order.target}: {ran.words}\n\n{ran.output}")
            file.flush()
            os.fsync(file.fileno())

    def free(self, gpu: str, let_go: Callable[[bool], bool]) -> str:
        """Have the agent and the units let go; return who still holds the GPU, "" when nobody does."""
        if not let_go(True):
            return "the agent did not let go of the GPUs"
        systemctl = self._config.systemctl
        for unit in self._config.reset.let_go:
            if tools.run([*systemctl, "is-active", "--quiet", "--", unit], {}, _LOOK_S).status != 0:
                continue
            self._ledger.let_go(unit)
            ran = tools.run([*systemctl, "stop", "--", unit], {}, _LOOK_S)
            if ran.status != 0:
                return f"{unit} could not be stopped: {ran.words}"
        deadline = time.monotonic() + _FREE_WITHIN_S
        while found := holders(gpu, self._config.reset.devices):
            if time.monotonic() >= deadline:
                who = ", ".join(f"{holder.name} (pid {holder.pid})" for holder in found[:3])
                return f"{len(found)} processes hold {gpu}: {who}"
            time.sleep(0.1)
        return ""

    def reset(self, gpu: str) -> tuple[EffectState, str]:
        """Reset it; return how that went."""
        ran = tools.run(self._config.reset.command, {"gpu": gpu}, self._config.reset.deadline)
        if ran.status is None:
            return "unknown", f"reset of {gpu}: {ran.words}"
        return ("done" if ran.status == 0 else "failed"), f"reset of {gpu}: {ran.words}"

    def restore(self) -> None:
        """Start every unit that we let go; one that does not start stays owed and is tried again."""
        for unit in self._ledger.owed():
            ran = tools.run([*self._config.systemctl, "start", "--", unit], {}, _LOOK_S)
            if ran.status == 0:
                self._ledger.restored(unit)
            else:
                _log.error("unit_not_restored", unit=unit, detail=ran.words)
