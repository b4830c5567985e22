"""Print the demo's scenario, or check a scenario file: `python -m gpuvigil_agent.simulate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpuvigil_agent.simulate.demo import demo_scenario
from gpuvigil_agent.simulate.scenario import load_scenario
from gpuvigil_protos.settings import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; 0, or 2 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m gpuvigil_agent.simulate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo-scenario", help="print the demo's scenario")
    demo.add_argument("--seed", type=int, default=1)
    demo.add_argument("--nodes", type=int, default=16)
    demo.add_argument("--gpus", type=int, default=8)
    check = commands.add_parser("check", help="check a scenario file")
    check.add_argument("file", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "demo-scenario":
            sys.stdout.write(demo_scenario(chosen.seed, chosen.nodes, chosen.gpus))
        else:
            scenario = load_scenario(chosen.file)
            jobs = f", {len(scenario.jobs)} jobs" if scenario.jobs else ""
            sys.stdout.write(f"{chosen.file}: {len(scenario.faults)} faults{jobs}: ok\n")
    except (ConfigError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
