"""The demo's supervised job where there is no torch: one rank that counts, with hook and saver.

usage: plain_job.py FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from gpuvigil import monitor
from gpuvigil.saver import Saver

STEP_S = 0.15


def main(folder: Path) -> None:
    """Add up numbers, for ever."""
    total = 0

    def save(into: Path) -> None:
        (into / "rank0.txt").write_text(str(total), encoding="utf-8")

    def load(found: Path) -> None:
        nonlocal total
        total = int((found / "rank0.txt").read_text(encoding="utf-8"))

    saver = Saver(folder / "checkpoints", save, interval=40, timeout_s=60)
    step = saver.resume(load)
    while True:
        with monitor.step(step) as s:
            with monitor.phase("forward"):
                time.sleep(STEP_S)
                total += step
            s.log(loss=1 / (1 + step))
        saver.step(step)
        step += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
