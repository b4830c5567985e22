"""The `gpuvigil` command: dispatches to the part that is installed. Standard library only, Python 3.9+."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import List, Optional

_AGENT_COMMANDS = {"scan"}
_HELP = """gpuvigil: which node, GPU, link or job is going wrong, and why.

  gpuvigil scan                          health check of this node     pip install 'gpuvigil[agent]'
  gpuvigil status, jobs, incidents, ...  the fleet                     pip install 'gpuvigil[collector]'
  gpuvigil run -- torchrun ...           a job, seen and restarted     installed
  from gpuvigil import monitor           a training loop's steps       installed"""
_UNKNOWN = 3  # scan's exit status where it cannot judge: a missing part is no critical node


def main(argv: Optional[List[str]] = None) -> int:
    """Run a command. `scan` executes the agent; the rest is the operator's CLI where it is installed."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in _AGENT_COMMANDS:
        return _run_agent(arguments)
    if arguments[:1] == ["run"]:
        from gpuvigil.run import main as run_main  # noqa: PLC0415 - the daemons import this package too

        return run_main(arguments[1:])
    if importlib.util.find_spec("gpuvigil_cli") is None or importlib.util.find_spec("typer") is None:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_HELP)  # noqa: T201
            return 0
        return _missing("collector", arguments)
    from gpuvigil_cli.__main__ import main as cli_main  # noqa: PLC0415

    return int(cli_main(arguments) or 0)


def _run_agent(arguments: List[str]) -> int:
    if importlib.util.find_spec("gpuvigil_agent") is None or importlib.util.find_spec("msgspec") is None:
        _missing("agent", arguments)
        return _UNKNOWN
    command = [sys.executable, "-m", "gpuvigil_agent", *arguments]
    return os.execv(sys.executable, command)  # noqa: S606 - replaces this process by the agent's own scan


def _missing(extra: str, arguments: List[str]) -> int:
    what = arguments[0] if arguments else "gpuvigil"
    print(f"{what}: this part is not installed; run: pip install 'gpuvigil[{extra}]'", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
