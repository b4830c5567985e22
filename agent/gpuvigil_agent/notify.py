"""Words to systemd: ready, status, watchdog, stopping. Without NOTIFY_SOCKET they go nowhere."""

from __future__ import annotations

import os

import sdnotify


class Notify:
    """The watchdog is fed by the tick alone: a loop that hangs gets the agent restarted."""

    def __init__(self) -> None:
        self._socket = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._status = ""

    def _send(self, text: str) -> None:
        if self._socket is not None:
            self._socket.notify(text)

    def ready(self, status: str) -> None:
        """Everything is started."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Say the state again when it changed."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def alive(self) -> None:
        """A tick was done."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")
