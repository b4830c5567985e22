"""nvitop-exporter over the simulated H100 driver: the same library object below the same pynvml as our agent.

Prints the simulation's own CPU seconds when it is stopped. usage: nvitop_on_simulator.py PORT
"""

from __future__ import annotations

import signal
import sys

import harness

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate import driver


def main() -> None:
    """Install the simulated driver, then run the exporter's own command."""
    driver.install(Simulate(gpus=8), "sim-00")
    from nvitop_exporter import cli

    def stop(_signal: int, _frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    sys.argv = ["nvitop-exporter", "--bind-address", "127.0.0.1", "--port", sys.argv[1], "--interval", "1"]
    try:
        cli.main()
    finally:
        print(f"simulation_cpu_seconds {driver.cost_seconds():.3f}", flush=True)


if __name__ == "__main__":
    print(harness.machine(), flush=True)
    main()
