"""`gpuvigil-agent`: the node daemon, its config check, and the one-shot scan."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from gpuvigil_agent import config_file
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.identity import node_name
from gpuvigil_protos import log, settings
from gpuvigil_protos.settings import ConfigError

EXIT_WITHIN_S: Final = 9.0
_log = log.get("agent")


def main(argv: list[str] | None = None) -> int:
    """Run the daemon until SIGTERM; 0 on a clean end, 1 with one line on standard error otherwise."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["scan"]:
        from gpuvigil_agent import scan  # noqa: PLC0415 - the daemon does without

        return int(scan.main(arguments[1:]))
    if arguments[:1] == ["validate"]:
        from gpuvigil_agent import validate  # noqa: PLC0415 - the same

        return validate.main(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        config = config_file.load(options.config, options.set)
        node = node_name(config.node, config.tls)
        if options.check_config:
            sys.stdout.write(settings.effective(config))
            return 0
        return _serve(config_file.settle(config, node), node, options.config, options.set)
    except ConfigError as error:
        return _refuse(str(error))


def _refuse(text: str) -> int:
    sys.stderr.write(f"gpuvigil-agent: {text}\n")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gpuvigil-agent", description="Polls this node, spools, streams.",
                                     epilog="gpuvigil-agent scan: one-shot health check")  # fmt: skip
    default = config_file.DEFAULT if config_file.DEFAULT.exists() else None
    parser.add_argument("--config", type=Path, default=default, metavar="FILE",
                        help=f"TOML file; default {config_file.DEFAULT} where it exists")  # fmt: skip
    parser.add_argument("--check-config", action="store_true", help="print the effective config and end")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


def _serve(config: AgentConfig, node: str, path: Path | None, overrides: list[str]) -> int:
    log.configure(config.log_level)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is loaded: its own lines are no logfmt
    from gpuvigil_agent.spool_open import SpoolError  # noqa: PLC0415 - after the config check

    if not config.tls.enabled:
        _log.warning("plain_text", collector=config.collector.address, note="no [tls]: loopback only")
    try:
        asyncio.run(_daemon(config, node, path, overrides))
    except SpoolError as error:
        return _refuse(str(error))
    sys.stderr.flush()
    # a host read or a sync that hangs in the kernel holds its thread; the interpreter would wait for it
    os._exit(0)


async def _daemon(config: AgentConfig, node: str, path: Path | None, overrides: list[str]) -> None:
    from gpuvigil_agent.agent import Agent  # noqa: PLC0415 - grpc is 9 MiB: not for --check-config
    from gpuvigil_agent.reload import Reloads  # noqa: PLC0415 - the same

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing to reload yet
    agent = Agent(config, node)
    agent.open()  # before SIGTERM is ours: while a disk hangs here, the kernel's own way ends the process
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: _begin_end(agent.stop))
    reloads = Reloads(agent, path, overrides)
    loop.add_signal_handler(signal.SIGHUP, reloads.ask)
    await agent.run()


def _begin_end(stop: asyncio.Event) -> None:
    """Ask for the end, and make sure of it: nothing that hangs may outlast the limit."""
    if not stop.is_set():
        watchdog = threading.Timer(EXIT_WITHIN_S, os._exit, (1,))
        watchdog.daemon = True
        watchdog.start()
    stop.set()


if __name__ == "__main__":
    raise SystemExit(main())
