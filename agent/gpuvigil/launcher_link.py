"""A launcher's word with the node's agent: who it launches, and what it is asked to do.

One SOCK_SEQPACKET connection; the agent knows by the kernel whose process it is. A missing agent costs one
failed connect at growing intervals and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
from typing import Any, Callable, Dict, Mapping, Optional

from gpuvigil.identity import identity
from gpuvigil.link import (
    DEFAULT_SOCKET,
    MESSAGE_MAX,
    PROTOCOL,
    RETRY_MAX_S,
    RETRY_MIN_S,
    dial,
    hear_welcome,
)

_POLL_S = 1.0


class LauncherLink(threading.Thread):
    """Registers a launcher's job; `asked` gets what the agent says, and says whether it acts on it."""

    def __init__(self, environment: Mapping[str, str], asked: Callable[[Dict[str, object]], bool]) -> None:
        super().__init__(name="gpuvigil-launcher", daemon=True)
        self._path = environment.get("GPUVIGIL_SOCKET", DEFAULT_SOCKET)
        self._job = identity(environment)["job"]
        self._asked = asked
        self._socket: Optional[socket.socket] = None
        self._closed = False

    def run(self) -> None:
        """Stay registered until closed."""
        wait_s = RETRY_MIN_S
        while not self._closed:
            try:
                self._connect()
                wait_s = RETRY_MIN_S
                self._listen()
            except (OSError, ValueError):
                self._drop()
            time.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(RETRY_MAX_S, 2 * wait_s)

    def tell(self, word: Dict[str, Any]) -> None:
        """Tell the agent something, if there is one."""
        made = self._socket
        if made is not None:
            with contextlib.suppress(OSError):
                made.send(json.dumps(word).encode())

    def close(self) -> None:
        """End the connection."""
        self._closed = True
        self._drop()

    def _connect(self) -> None:
        with dial(self._path) as made:
            made.send(json.dumps({"protocol": PROTOCOL, "launcher": self._job, "pid": os.getpid()}).encode())
            hear_welcome(made)
        made.settimeout(_POLL_S)
        self._socket = made

    def _listen(self) -> None:
        while not self._closed and self._socket is not None:
            try:
                data = self._socket.recv(MESSAGE_MAX)
            except socket.timeout:
                continue
            if not data:
                raise OSError("the agent is gone")
            word = json.loads(data)
            if isinstance(word, dict) and self._asked(word):
                self.tell({"event": "accepted", "id": str(word.get("id", ""))[:32]})

    def _drop(self) -> None:
        made, self._socket = self._socket, None
        if made is not None:
            made.close()
