"""The socket that training processes find: open to every user, never taken from a living agent."""

from __future__ import annotations

import errno
import socket
from pathlib import Path


def listen(path: Path) -> socket.socket:
    """Listen without blocking. Raises OSError where the folder is not there or not ours, or one listens."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        _clear(path)
        made.bind(str(path))
        path.chmod(0o666)  # every user's jobs may register; who they are the kernel says
        made.listen(64)
    except OSError:
        made.close()
        raise
    return made


def _clear(path: Path) -> None:
    """Remove the socket of an agent that is gone. Raises OSError where one listens: it keeps its ranks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another agent listens there")
