"""A receiver of the operator's, told by a signed POST; the action's id is its Idempotency-Key.

The key makes it safe to send again, within one apply alone: a lost answer is asked for once more, and what
stays unknown then is left to `look`. X-Gpuvigil-Signature is sha256= and the HMAC of timestamp, "." and body.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Literal

import httpx
import msgspec

from gpuvigil_collector.action import Action, AmbiguousError, Fence, Kind, Look, RefusedError
from gpuvigil_collector.actuator_config import Webhook
from gpuvigil_collector.actuators.tools import Tools, names
from gpuvigil_collector.process import within
from gpuvigil_protos.text import printable

_LOOK_S: Final = 10.0
_ATTEMPT_S: Final = 5.0
_FIRST_WAIT_S: Final = 0.2
_ANSWER_MAX: Final = 65_536
_AGAIN: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_SECRET_LEAST: Final = 16


class Status(msgspec.Struct, frozen=True):
    """What the status address answers."""

    state: Literal["absent", "done", "foreign", "unknown"]
    detail: str = ""
    token: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes

    def said(self) -> str:
        text = self.body[:200].decode(errors="replace").strip()
        return f"status {self.status} {printable(text)}".strip()


class WebhookActuator:
    """One row of the operator's `[[actuators.webhook]]`."""

    def __init__(self, settings: Webhook, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.name = f"webhook {settings.name}"
        self.kinds: frozenset[Kind] = frozenset(settings.kinds)
        self._settings, self._now_ns = settings, now_ns

    def look(self, action: Action) -> Look:
        """Ask the status address. Without one: what we never sent is absent, what was taken is done."""
        try:
            known = names(action)
            if not self._settings.status_url:
                return _by_record(action)
            headers = self._headers(b"", known["id"], action.generation)
            url = f"{self._settings.status_url.rstrip('/')}/{known['id']}"
            answer = asyncio.run(_once("GET", url, b"", headers, _LOOK_S, []))
        except (RefusedError, httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return Look(state="unknown", detail=f"{self.name}: {str(error) or type(error).__name__}")
        return self._read(answer)

    def apply(self, action: Action, fence: Fence) -> str:
        """Post the action until it is answered. Raises RefusedError or AmbiguousError."""
        known = names(action)
        body = _body(action, fence, known)
        headers = self._headers(body, known["id"], fence.generation)
        deadline_s = within(fence, action.proposal.deadline_s, self._now_ns())
        return asyncio.run(self._post(body, headers, deadline_s))

    async def _post(self, body: bytes, headers: Mapping[str, str], deadline_s: float) -> str:
        """Send it, again with the same key while nothing or a passing fault answers, until time is up."""
        end, wait_s, last = time.monotonic() + deadline_s, _FIRST_WAIT_S, "no time was left"
        begun: list[str] = []  # of all attempts: a refusal after one that may have arrived is no certainty
        while (left_s := end - time.monotonic()) > 0:
            try:
                answer = await _once(
                    "POST", self._settings.url, body, headers, min(left_s, _ATTEMPT_S), begun
                )
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                last = f"no {'answer' if begun else 'connection'} ({str(error) or type(error).__name__})"
            else:
                last = answer.said()
                if answer.status // 100 == 2:
                    return f"{self.name}: {last}"
                if answer.status // 100 != 5:  # it was refused: this attempt had no effect
                    begun.pop()
                if answer.status // 100 != 5 and answer.status not in _AGAIN:
                    break
            await asyncio.sleep(min(wait_s * random.uniform(0.5, 1.5), max(end - time.monotonic(), 0)))
            wait_s *= 2
        if begun:
            raise AmbiguousError(f"{self.name}: {last}")
        raise RefusedError(f"{self.name}: {last}")

    def _read(self, answer: _Answer) -> Look:
        if answer.status == HTTPStatus.NOT_FOUND:
            return Look(state="absent", detail=f"{self.name}: {answer.said()}")
        if answer.status != HTTPStatus.OK:
            return Look(state="unknown", detail=f"{self.name}: {answer.said()}")
        try:
            status = msgspec.json.decode(answer.body, type=Status)
        except msgspec.MsgspecError as error:
            return Look(state="unknown", detail=f"{self.name}: its status cannot be read: {error}")
        words = [text[:200] if text.isprintable() else "" for text in (status.detail, status.token)]
        return Look(state=status.state, detail=f"{self.name}: {words[0]}", token=words[1])

    def _headers(self, body: bytes, action_id: str, generation: int) -> dict[str, str]:
        """Sign the body. Raises RefusedError when the secret cannot be read."""
        try:
            secret = Path(self._settings.secret_file).read_bytes().strip()
        except OSError as error:
            raise RefusedError(f"{self.name}: secret_file: {error.strerror}") from None
        if len(secret) < _SECRET_LEAST:
            raise RefusedError(
                f"{self.name}: secret_file: expected {_SECRET_LEAST} bytes or more, got {len(secret)}"
            )
        stamp = str(self._now_ns() // 1_000_000_000)
        mac = hmac.new(secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        return {
            "Content-Type": "application/json",
            "Idempotency-Key": action_id,
            "X-Gpuvigil-Timestamp": stamp,
            "X-Gpuvigil-Signature": f"sha256={mac}",
            "X-Gpuvigil-Generation": str(generation),
        }


def make(tools: Tools) -> Iterator[WebhookActuator]:
    """One for each that the operator configured."""
    return (WebhookActuator(row, tools.now_ns) for row in tools.settings.webhook)


def _by_record(action: Action) -> Look:
    if action.state == "intended":
        return Look(state="absent", detail="never sent")
    if action.state == "issued" and action.outcome:
        return Look(state="done", detail=action.outcome)
    return Look(state="unknown", detail="no status_url is configured: a person must look")


def _body(action: Action, fence: Fence, known: Mapping[str, str]) -> bytes:
    asked = action.proposal
    told = {key: getattr(asked, key) for key in ("kind", "case", "fault_class", "playbook", "step", "reason")}
    holder = {"holder": fence.holder, "generation": fence.generation, "until_ns": fence.until_ns}
    return msgspec.json.encode(
        {**known, **told, "deadline_s": asked.deadline_s, "attempt": action.attempt, **holder}
    )


async def _once(
    method: str, url: str, body: bytes, headers: Mapping[str, str], deadline_s: float, begun: list[str]
) -> _Answer:
    """One request; the deadline is for all of it, an answer that drips in included.

    Appends to `begun` as soon as the first byte may leave: before, nothing can have arrived.
    Raises httpx.HTTPError or TimeoutError. Follows no redirect and uses no proxy of the environment: the
    effect is asked of the configured address alone.
    """

    async def trace(event: str, _info: object) -> None:  # httpcore's; awaited as it happens
        if event.endswith("send_request_headers.started"):
            begun.append(url)

    async with (
        asyncio.timeout(deadline_s),
        httpx.AsyncClient(timeout=deadline_s, trust_env=False) as client,
        client.stream(
            method, url, content=body, headers=dict(headers), extensions={"trace": trace}
        ) as response,
    ):
        kept = b""
        async for block in response.aiter_raw():
            kept += block[: _ANSWER_MAX - len(kept)]
            if len(kept) >= _ANSWER_MAX:
                break
        return _Answer(response.status_code, kept)
