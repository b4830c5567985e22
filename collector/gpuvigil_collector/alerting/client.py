"""One Alertmanager's API v2: every call within a deadline, every answer bounded, every failure one error.

Source: https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
"""

from __future__ import annotations

import ssl
import time
from typing import Any, Final

import httpx
import msgspec

from gpuvigil_collector.alerting.settings import AlertingConfig, address_of, read_secret
from gpuvigil_protos.settings import ConfigError
from gpuvigil_protos.text import printable

_ANSWER_MAX: Final = 64 * 1024
_LIST_MAX: Final = 16 * 1024 * 1024
_TEXT_MAX: Final = 500


class AlertmanagerError(Exception):
    """The replica did not answer, or not as it should: try again later. The text is one clean line."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text[:_TEXT_MAX]))


class NotTakenError(AlertmanagerError):
    """It read the request and refuses what is in it: sent again it would be refused again."""


class Matcher(msgspec.Struct, kw_only=True, frozen=True):
    """One condition of a silence, as Alertmanager writes it."""

    name: str
    value: str
    is_regex: bool = msgspec.field(name="isRegex", default=False)
    is_equal: bool = msgspec.field(name="isEqual", default=True)


class SilenceRow(msgspec.Struct, kw_only=True, frozen=True):
    """One silence, as Alertmanager writes it; times are RFC 3339."""

    id: str
    matchers: list[Matcher]
    starts_at: str = msgspec.field(name="startsAt")
    ends_at: str = msgspec.field(name="endsAt")
    created_by: str = msgspec.field(name="createdBy", default="")
    comment: str = ""
    status: dict[str, Any] = msgspec.field(default_factory=dict)


class Alertmanager:
    """One replica. All methods raise AlertmanagerError alone. One thread at a time."""

    def __init__(self, url: str, config: AlertingConfig, context: ssl.SSLContext) -> None:
        self.address, self._auth, self._timeout_s = address_of(url), config.auth, float(config.timeout)
        # trust_env off: a proxy of the environment must neither see nor break this
        self._http = httpx.Client(
            base_url=url.rstrip("/"), timeout=self._timeout_s, trust_env=False, verify=context,
        )  # fmt: skip

    def post(self, alerts: list[dict[str, Any]]) -> None:
        """Hand over alerts. Raises NotTakenError where the replica refuses one of them."""
        self._ask("POST", "/api/v2/alerts", _ANSWER_MAX, content=msgspec.json.encode(alerts))

    def silences(self) -> list[SilenceRow]:
        """Return every silence that it holds, expired ones included."""
        body = self._ask("GET", "/api/v2/silences", _LIST_MAX)
        try:
            return msgspec.json.decode(body, type=list[SilenceRow])
        except msgspec.MsgspecError as error:
            raise AlertmanagerError(f"{self.address}: silences that cannot be read: {error}") from None

    def holds(self, alertname: str) -> bool:
        """Tell whether it has an alert of this name now, silenced or not."""
        query = {"filter": f'alertname="{alertname}"', "silenced": "true", "inhibited": "true"}
        body = self._ask("GET", "/api/v2/alerts", _LIST_MAX, params=query)
        try:
            return bool(msgspec.json.decode(body, type=list[Any]))
        except msgspec.MsgspecError as error:
            raise AlertmanagerError(f"{self.address}: alerts that cannot be read: {error}") from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, method: str, path: str, limit: int, **more: Any) -> bytes:
        try:
            headers = {"Content-Type": "application/json", **self._authorization()}
            with self._http.stream(method, path, headers=headers, **more) as answer:
                body = self._read(answer, limit)
        except (httpx.HTTPError, httpx.InvalidURL, ConfigError) as error:
            raise AlertmanagerError(f"{self.address}: {str(error) or type(error).__name__}") from None
        if answer.is_success:
            return body
        text = f"{self.address}: HTTP {answer.status_code}: {body[:300].decode('utf-8', 'replace').strip()}"
        bad = answer.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
        raise (NotTakenError if bad else AlertmanagerError)(text)

    def _read(self, answer: httpx.Response, limit: int) -> bytes:
        """Read the body; a server that drips or never ends is given up."""
        deadline, body = time.monotonic() + self._timeout_s, bytearray()
        for chunk in answer.iter_bytes():
            body += chunk
            if len(body) > limit:
                raise AlertmanagerError(f"{self.address}: expected at most {limit} bytes, got more")
            if time.monotonic() > deadline:
                raise AlertmanagerError(f"{self.address}: the answer did not end in {self._timeout_s:g} s")
        return bytes(body)

    def _authorization(self) -> dict[str, str]:
        if self._auth.token_file:
            return {
                "Authorization": f"Bearer {read_secret(self._auth.token_file, 'alerting.auth.token_file')}"
            }
        if self._auth.user:
            secret = read_secret(self._auth.password_file, "alerting.auth.password_file")
            basic = httpx.BasicAuth(self._auth.user, secret)
            return {"Authorization": next(basic.auth_flow(httpx.Request("GET", ""))).headers["Authorization"]}
        return {}
