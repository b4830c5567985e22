"""The hook's thread: beats twice a second, and keeps this process registered with the node's agent.

A SOCK_SEQPACKET connection carries one JSON message with the descriptors of ring, control page and, where
there is one, the file for stacks; its end tells each side at once that the other is gone, and the hook
registers anew. Nothing here is waited for by the loop; a missing agent costs one failed connect at growing
intervals.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import socket
import threading
import time
from array import array
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, Optional

from gpuvigil.evidence import Evidence
from gpuvigil.identity import identity
from gpuvigil.ring import Control, Ring
from gpuvigil.stacks import Stacks
from gpuvigil.standstill import Standstill

DEFAULT_SOCKET = "/run/gpuvigil/hook.sock"
PROTOCOL = 1
BEAT_S = 0.5
RETRY_MIN_S, RETRY_MAX_S = 1.0, 30.0
TIMEOUT_S = 2.0
MESSAGE_MAX = 4096
_WORDS_MAX = 64


class RefusedError(ValueError):
    """The agent does not take this process in; the text is its reason."""


@contextlib.contextmanager
def dial(path: str) -> Iterator[socket.socket]:
    """Connect to an agent; what goes wrong in the body closes the connection. Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.settimeout(TIMEOUT_S)
        made.connect(path)
        yield made
    except BaseException:
        made.close()
        raise


def hear_welcome(made: socket.socket) -> None:
    """Read what the agent says to a first message. Raises RefusedError, ValueError, OSError."""
    answer = json.loads(made.recv(MESSAGE_MAX) or b"{}")
    if not isinstance(answer, dict) or not answer.get("ok"):
        raise RefusedError(str(answer.get("refused", ""))[:200] if isinstance(answer, dict) else "")


class Link(threading.Thread):
    """Daemon thread of one process; a forked child does not have it."""

    def __init__(
        self, ring: Ring, control: Control, settle: Callable[[], None], last_end: Callable[[], int]
    ) -> None:
        """`settle` is called at each beat: values that have arrived go into their records. last_end: when the
        newest step ended, ns of the monotonic clock.
        """
        super().__init__(name="gpuvigil", daemon=True)
        self._ring, self._control, self._settle = ring, control, settle
        self._socket: Optional[socket.socket] = None
        self._retry_at, self._retry_s = 0.0, RETRY_MIN_S
        self._pid = os.getpid()
        self.registered = False
        self.refused = ""
        self.offers: Dict[str, str] = {}
        self._again = False
        self._words: Deque[bytes] = deque(maxlen=_WORDS_MAX)
        self._last_end, self._standstill = last_end, Standstill(self.tell)
        self._stacks, self._evidence = Stacks(), Evidence(self.tell)
        atexit.register(self._say_exit)

    def run(self) -> None:
        """Beat, connect, listen; what goes wrong is tried again, never told to the loop."""
        while True:
            self._ring.beat()
            with contextlib.suppress(Exception):  # a torch that is being torn down at exit
                self._settle()
                self._standstill.look(self._last_end())
                self._ring.stack_signal(self._stacks.current())
                self._evidence.look(self._control.evidence)
            try:
                self._tend()
            except (OSError, ValueError):
                self._drop()
            time.sleep(BEAT_S)

    def _tend(self) -> None:
        if self._again:
            self._again = False
            self._drop()
            self._retry_at, self._retry_s = 0.0, RETRY_MIN_S
        if self._socket is None and time.monotonic() >= self._retry_at:
            self._connect()
        if self._socket is not None:
            self._say(self._socket)
            self._listen(self._socket)

    def _connect(self) -> None:
        self._retry_at = time.monotonic() + self._retry_s * random.uniform(0.5, 1.0)
        self._retry_s = min(RETRY_MAX_S, 2 * self._retry_s)
        path = os.environ.get("GPUVIGIL_SOCKET", DEFAULT_SOCKET)
        if not path.startswith("/"):
            return
        try:
            with dial(path) as made:
                known = {**identity(), **self.offers}
                self._ring.identify(known)
                self._send(made, known)
                hear_welcome(made)
        except RefusedError as refused:
            self.refused = str(refused)
            return
        made.setblocking(False)
        self._socket, self.registered, self._retry_s = made, True, RETRY_MIN_S

    def _send(self, made: socket.socket, known: Dict[str, Any]) -> None:
        message = json.dumps({"protocol": PROTOCOL, "generation": self._ring.generation, "identity": known})
        files = array("i", [self._ring.fd, self._control.fd])
        if self._stacks.fd >= 0:
            files.append(self._stacks.fd)
        made.sendmsg([message.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])

    def _listen(self, made: socket.socket) -> None:
        """Notice the agent's end; what it says beyond that is for later versions."""
        try:
            if made.recv(MESSAGE_MAX):
                return
        except BlockingIOError:
            return
        self._drop()

    def tell(self, word: Dict[str, Any]) -> None:
        """Have the agent told, now or when there is one again; of what waits the newest 64 are kept."""
        message = json.dumps(word).encode()
        if len(message) <= MESSAGE_MAX:
            self._words.append(message)

    def offer(self, name: str, value: str) -> None:
        """Register anew with one more thing that this process can do."""
        self.offers[name] = value
        self._again = True

    def _say(self, made: socket.socket) -> None:
        while self._words:
            made.send(self._words[0])
            self._words.popleft()

    def _drop(self) -> None:
        made, self._socket, self.registered = self._socket, None, False
        if made is not None:
            made.close()

    def _say_exit(self) -> None:
        """Tell the agent that the process ends by its own will; a forked child is not this process."""
        made = self._socket
        if made is None or os.getpid() != self._pid:
            return
        with contextlib.suppress(OSError):
            self._say(made)
            made.send(b'{"event":"exit"}')
