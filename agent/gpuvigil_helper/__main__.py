"""`gpuvigil-helper`: the privileged helper of a node, and its config check."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path

from gpuvigil_helper import check, config, server
from gpuvigil_helper.config import HelperConfig
from gpuvigil_helper.desk import Desk
from gpuvigil_helper.effects import Effects
from gpuvigil_helper.hold import HoldFile
from gpuvigil_helper.ledger import Ledger, LedgerError
from gpuvigil_protos import log, settings
from gpuvigil_protos.settings import ConfigError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = log.get("helper")


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM; 0 on a clean end, 1 with one line on standard error otherwise."""
    parser = argparse.ArgumentParser(
        "gpuvigil-helper", description="Resets, reboots and stops, on signed orders."
    )
    default = config.DEFAULT if config.DEFAULT.exists() else None
    parser.add_argument("--config", type=Path, default=default, metavar="FILE")
    parser.add_argument("--check-config", action="store_true", help="print the effective config and end")
    options = parser.parse_args(argv)
    try:
        found = config.load(options.config)
        if options.check_config:
            sys.stdout.write(settings.effective(found))
            return 0
        return _serve(found)
    except (ConfigError, LedgerError, OSError) as error:
        sys.stderr.write(f"gpuvigil-helper: {error}\n")
        return 1


def _serve(found: HelperConfig) -> int:
    log.configure(found.log_level)
    node = found.node or socket.gethostname()
    boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    key = check.load_key(Path(found.key))
    state = Path(found.state_directory)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    ledger = Ledger(state / "ledger.db", boot_id)
    hold = HoldFile(state / "held")
    effects = Effects(found, ledger, hold)
    for effect in ledger.settle():
        _log.warning("effect_open", verb=effect.verb, target=effect.target, state=effect.state)
    effects.restore()
    desk = Desk(found, node, key, ledger, boot_id, effects, hold)
    serving = server.Server(server.listen(found.socket), desk, found.agent_user)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: serving.stop.set())
    _log.info("helper_started", node=node, act=found.act)
    serving.run()
    ledger.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
