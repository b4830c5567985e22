"""The helper's socket: SOCK_SEQPACKET, one message a connection, from the agent's user alone.

Source: SO_PEERCRED [pid, uid, gid of connect()], sd_listen_fds(3) for a socket that systemd hands over.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_helper.desk import MESSAGE_MAX, Desk
from gpuvigil_protos import log
from gpuvigil_protos.settings import ConfigError

_CREDENTIALS: Final = struct.Struct("3i")
_CONNECTIONS_MAX: Final = 8
_READ_S: Final = 5.0
_LET_GO_S: Final = 15.0
_FIRST_FD: Final = 3
_DYNAMIC_USERS: Final = "/run/systemd/dynamic-uid/direct:"
_log = log.get("server")


def listen(path: str) -> socket.socket:
    """Return systemd's socket, or one of our own at `path`. Raises ConfigError when there is neither."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=_FIRST_FD)
    if not path:
        raise ConfigError("socket: expected a path, or to be started by systemd with a socket")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        Path(path).unlink(missing_ok=True)
        made.bind(path)
        Path(path).chmod(0o666)  # who it is the kernel says; the mode would only have to follow the user
        made.listen(_CONNECTIONS_MAX)
    except OSError as error:
        made.close()
        raise ConfigError(f"socket: {path}: {error.strerror}") from None
    return made


def uid_of(user: str) -> int | None:
    """Return a user's number, None where there is no such user now (a dynamic one whose unit is stopped)."""
    if user.isascii() and user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        pass
    try:  # where nss-systemd is not installed nobody else knows dynamic users
        found = str(Path(_DYNAMIC_USERS + user).readlink())
    except OSError:
        return None
    return int(found) if found.isascii() and found.isdecimal() else None


class Server:
    """Serves until `stop` is set and nothing is being carried out."""

    def __init__(self, listener: socket.socket, desk: Desk, agent_user: str) -> None:
        self._listener, self._desk, self._agent_user = listener, desk, agent_user
        self._slots = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self.stop = threading.Event()

    def run(self) -> None:
        """Accept until stopped, each connection in a thread of its own."""
        self._listener.settimeout(0.5)
        while not self.stop.is_set() or self._desk.busy():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_READ_S)
                if self._is_agent(connection) and (message := connection.recv(MESSAGE_MAX + 1)):
                    answer = self._desk.answer(message, _let_go_by(connection))
                    connection.send(msgspec.json.encode(answer))
        except OSError as error:
            _log.warning("connection_lost", reason=str(error))
        finally:
            self._slots.release()

    def _is_agent(self, connection: socket.socket) -> bool:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        if uid == uid_of(self._agent_user):
            return True
        _log.warning("connection_refused", uid=uid, pid=pid, expected=self._agent_user)
        return False


def _let_go_by(connection: socket.socket) -> Callable[[bool], bool]:
    """Ask the agent at the other end to let go of the GPUs, or to take them again."""

    def ask(go: bool) -> bool:
        with contextlib.suppress(OSError):
            connection.send(msgspec.json.encode({"ask": "let_go" if go else "take"}))
            if not go:
                return True
            connection.settimeout(_LET_GO_S)
            return connection.recv(64) == b"let go"
        return False

    return ask
