"""The agent's word with the privileged helper: passes signed orders on, and lets go of the GPUs when asked.

The agent neither signs nor judges an order. The helper asks it to let go only once the order is proven, and
whatever happens the GPUs are taken again when the connection ends.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import msgspec

from gpuvigil_agent.hook_peer import Refused

_CONNECT_S: Final = 3.0
_MESSAGE_MAX: Final = 8192
_REASON: Final = "helper"


class LostError(Exception):
    """The helper did not answer: whether the order was carried out is not known."""


def look(path: str, action: str, unit: str) -> dict[str, object]:
    """Return what the helper sees now. Raises Refused, LostError."""
    return _talk(path, {"ask": "look", "action": action, "unit": unit}, 30, lambda _go: False)


def order(
    path: str, text: str, signature: str, seconds: float, let_go: Callable[[bool], bool]
) -> dict[str, object]:
    """Pass an order on and return the answer. Raises Refused where it did not arrive, LostError else."""
    return _talk(path, {"ask": "order", "order": text, "signature": signature}, seconds, let_go)


def _talk(
    path: str, body: dict[str, str], seconds: float, let_go: Callable[[bool], bool]
) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        try:
            link.settimeout(_CONNECT_S)
            link.connect(path)
            link.send(msgspec.json.encode(body))
        except OSError as error:
            raise Refused(
                _REASON, f"the helper cannot be reached at {path}: {error.strerror or error}"
            ) from None
        gone = False
        try:
            link.settimeout(seconds)
            while message := link.recv(_MESSAGE_MAX):
                if message not in (_LET_GO, _TAKE):
                    return msgspec.json.decode(message, type=dict[str, object])
                gone = message == _LET_GO
                if let_go(gone) and gone:
                    link.send(b"let go")
        except (OSError, msgspec.DecodeError) as error:
            raise LostError(f"the helper's answer was lost: {error}") from None
        finally:
            if gone:
                let_go(False)
    raise LostError("the helper ended the connection without an answer")


_LET_GO: Final = msgspec.json.encode({"ask": "let_go"})
_TAKE: Final = msgspec.json.encode({"ask": "take"})
