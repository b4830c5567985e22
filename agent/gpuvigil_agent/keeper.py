"""A supervised job's keeper: `gpuvigil run` with a bounded log, in a process that outlives the agent.

The log is one file: when it is full its newer half stays. How the job ended is written to a file that the
agent opened. Standard library and the hook alone; started by supervisor.py, never by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from typing import Final

from gpuvigil import run

_BLOCK: Final = 1 << 16


class BoundedLog:
    """A file of at most `most` bytes."""

    def __init__(self, descriptor: int, most: int) -> None:
        self._descriptor, self._most = descriptor, most
        self._size = os.fstat(descriptor).st_size

    def write(self, data: bytes) -> None:
        """Append; drop the older half when that is too much. A full disk costs lines, not the job."""
        try:
            if self._size + len(data) > self._most:
                kept = os.pread(self._descriptor, self._most // 2, max(0, self._size - self._most // 2))
                kept = kept[kept.find(b"\n") + 1 :]
                os.pwrite(self._descriptor, kept, 0)
                os.ftruncate(self._descriptor, len(kept))
                self._size = len(kept)
            self._size += os.pwrite(self._descriptor, data, self._size)
        except OSError:
            return


def main(arguments: list[str]) -> int:
    """Run the job to its end and write down how it ended."""
    parser = argparse.ArgumentParser("gpuvigil keeper")
    for name in ("--log-fd", "--log-max", "--end-fd"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--pythonpath", default="")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    os.environ.pop("PYTHONPATH", None)  # the keeper's own, not the job's
    if options.pythonpath:
        os.environ["PYTHONPATH"] = options.pythonpath
    reader, writer = os.pipe()
    log = BoundedLog(options.log_fd, options.log_max)
    for number in (1, 2):
        os.dup2(writer, number)
    os.close(writer)
    copying = threading.Thread(target=_copy, args=(reader, log), daemon=True)
    copying.start()
    status = run.main(options.rest[1:])
    sys.stderr.flush()
    os.write(options.end_fd, json.dumps({"status": status}).encode())
    os.fsync(options.end_fd)
    for number in (1, 2):  # the copier sees the end once the last writer is gone
        os.close(number)
    copying.join(2)
    return 0


def _copy(reader: int, log: BoundedLog) -> None:
    while data := os.read(reader, _BLOCK):
        log.write(data)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # standard error is closed: the interpreter's own end would complain
