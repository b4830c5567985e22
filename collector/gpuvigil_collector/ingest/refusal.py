"""The two ways to say no: a message refused for good, and a stream that must end."""

from __future__ import annotations

import grpc


class RefusedError(Exception):
    """A message that can never be accepted: counted, told to the agent once, never retried.

    reason is a stable word of stream.proto's Refusal; detail names field, expected and got, and is safe to
    print.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class StreamRejectedError(Exception):
    """A stream that ends now with a gRPC status; `reason` is the counter's word."""

    def __init__(self, code: grpc.StatusCode, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.code = code
        self.reason = reason
        self.detail = detail


def show(text: str, characters: int = 60) -> str:
    """Quote text from outside for an error: ASCII, escaped, cut."""
    return ascii(text[:characters]) + ("..." if len(text) > characters else "")
