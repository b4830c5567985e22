"""Actuators for the contract battery, each with the real thing behind it. A new one adds a row to CASES."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

from contract.agent_cases import agent_hold
from contract.kube_case import kubernetes
from contract.slurm_case import slurm

from gpuvigil_collector.action import Actuator, Kind
from gpuvigil_collector.actuator_config import Command, Webhook
from gpuvigil_collector.actuators.command import CommandActuator
from gpuvigil_collector.actuators.webhook import WebhookActuator

SECRET = b"a secret of thirty-two bytes....."


class Bench(Protocol):
    """An actuator and the world outside it, which the battery watches and disturbs."""

    actuator: Actuator
    kind: Kind

    def effects(self) -> list[tuple[str, int]]:
        """Every effect that the outside had: (action id, generation), oldest first."""

    def contacts(self) -> int:
        """How often the outside was asked anything that could have an effect."""

    def take(self, node: str) -> None:
        """Somebody else puts his mark on the node."""

    def taken_untouched(self, node: str) -> bool:
        """Tell whether his mark stands as he left it."""

    def lose_answer(self) -> None:
        """The next effect happens, and its answer never arrives."""

    def break_down(self) -> None:
        """Nothing answers from now on, or only nonsense."""


class Receiver:
    """A real HTTP receiver that checks signatures, keeps idempotency keys, and has one mark a node."""

    kind: Kind = "hold"

    def __init__(self, directory: Path) -> None:
        self.marks: dict[str, str] = {}
        self.had: list[tuple[str, int]] = []
        self.highest = self.posts = self.bad = 0
        self.losing, self.broken = False, ""
        self.statuses: list[int] = []  # answered to the next posts, before any effect
        self.lost = threading.Event()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        url = f"http://127.0.0.1:{self.server.server_port}"
        secret = directory / "secret"
        secret.write_bytes(SECRET + b"\n")
        self.settings = Webhook(
            name="test", kinds=("hold",), url=f"{url}/do", status_url=f"{url}/of", secret_file=str(secret)
        )
        self.actuator = WebhookActuator(self.settings)

    def effects(self):
        return list(self.had)

    def contacts(self):
        return self.posts

    def take(self, node):
        self.marks[node] = "somebody"

    def taken_untouched(self, node):
        return self.marks[node] == "somebody"

    def lose_answer(self):
        self.losing = True

    def break_down(self):
        self.broken = "<html>"

    def post(self, key: str, body: bytes) -> int:
        """Have the effect once a key; return the status."""
        asked = json.loads(body)
        with self.lock:
            self.posts += 1
            if self.statuses and (status := self.statuses.pop(0)):
                return status
            owner = self.marks.get(asked["node"])
            if asked["generation"] < self.highest or owner not in (None, key):
                return 409
            self.highest = asked["generation"]
            if owner is None:
                self.marks[asked["node"]] = key
                self.had.append((key, asked["generation"]))
        return 200

    def status(self, key: str) -> dict[str, str] | None:
        """What the status address answers about an action; node n1 alone is asked about by strangers."""
        if key in self.marks.values():
            return {"state": "done", "token": "t1"}
        return {"state": "foreign", "detail": "somebody"} if "somebody" in self.marks.values() else None


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args):
            """Say nothing."""

        def _signed(self, body: bytes) -> bool:
            stamp = self.headers["X-Gpuvigil-Timestamp"]
            mac = hmac.new(SECRET, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
            right = hmac.compare_digest(self.headers["X-Gpuvigil-Signature"], f"sha256={mac}")
            receiver.bad += not right
            return right

        def _answer(self, status: int, body: bytes = b"") -> None:
            if receiver.broken:
                status, body = (500 if self.command == "POST" else 200), receiver.broken.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.broken:
                receiver.posts += 1
                return self._answer(500)
            status = receiver.post(self.headers["Idempotency-Key"], body) if self._signed(body) else 401
            if receiver.losing:
                receiver.lost.wait(30)
            return self._answer(status)

        def do_GET(self):
            found = receiver.status(self.path.rpartition("/")[2]) if self._signed(b"") else None
            self._answer(200 if found else 404, json.dumps(found).encode() if found else b"")

    return Handler


@contextmanager
def webhook(directory: Path) -> Iterator[Bench]:
    """The webhook with a receiver on a port of its own."""
    receiver = Receiver(directory)
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.lost.set()
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join(10)


_APPLY = """#!/bin/sh
cd {folder} || exit 70
exec 9>lock; flock 9
echo x >> contacts
[ -e broken ] && exit 70
highest=$(cat generation 2>/dev/null || echo 0)
[ "$GPUVIGIL_GENERATION" -lt "$highest" ] && {{ echo "stale" >&2; exit 2; }}
echo "$GPUVIGIL_GENERATION" > generation
owner=$(cat "mark.$1" 2>/dev/null)
[ -n "$owner" ] && [ "$owner" != "$GPUVIGIL_ACTION" ] && {{ echo "it is of $owner" >&2; exit 2; }}
if [ -z "$owner" ]; then
  echo "$GPUVIGIL_ACTION" > "mark.$1"
  echo "$GPUVIGIL_ACTION $GPUVIGIL_GENERATION" >> effects
fi
[ -e losing ] && sleep 60
echo "marked $1 for $2"
"""
_LOOK = """#!/bin/sh
cd {folder} || exit 70
[ -e broken ] && exit 70
owner=$(cat "mark.$1" 2>/dev/null) || exit 1
echo "token of $owner"
[ "$owner" = "$GPUVIGIL_ACTION" ] || exit 2
"""


class Scripts:
    """Two real scripts that keep one mark a node in files."""

    kind: Kind = "hold"

    def __init__(self, directory: Path) -> None:
        self.folder = directory
        for name, text in (("apply", _APPLY), ("look", _LOOK)):
            (directory / name).write_text(text.format(folder=directory))
            (directory / name).chmod(0o755)
        self.settings = Command(
            name="test",
            kinds=("hold",),
            apply=(str(directory / "apply"), "{node}", "{incident}"),
            look=(str(directory / "look"), "{node}"),
        )
        self.actuator = CommandActuator(self.settings)

    def _lines(self, name):
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def effects(self):
        return [(line.split()[0], int(line.split()[1])) for line in self._lines("effects")]

    def contacts(self):
        return len(self._lines("contacts"))

    def take(self, node):
        (self.folder / f"mark.{node}").write_text("somebody\n")

    def taken_untouched(self, node):
        return (self.folder / f"mark.{node}").read_text() == "somebody\n"

    def lose_answer(self):
        (self.folder / "losing").write_text("")

    def break_down(self):
        (self.folder / "broken").write_text("")


@contextmanager
def command(directory: Path) -> Iterator[Bench]:
    """The command with its two scripts."""
    yield Scripts(directory)


CASES: dict[str, Callable[[Path], AbstractContextManager[Bench]]] = {
    "webhook": webhook,
    "command": command,
    "slurm": slurm,
    "kubernetes": kubernetes,
    "supervisor": agent_hold,
}
NEEDS = {"slurm": "needs_slurm", "kubernetes": "needs_kube"}
"""The mark of each that needs more than this checkout."""
