"""Reading the collector's API: every answer within a deadline, every failure one clear line."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

import httpx

from gpuvigil_cli.text import clean

DEFAULT_URL: Final = "http://127.0.0.1:9512"
_TIMEOUT = httpx.Timeout(5.0, connect=2.0)
_ASK_TIMEOUT_S: Final = 15.0  # a request is answered at the next tick
_ITEMS_MAX: Final = 100_000  # 10,000 nodes of 8 GPUs fit; a cursor that never ends does not
_PAGE: Final = 1000
_INCIDENT_ID = re.compile(r"[A-Za-z0-9._-]{1,100}\Z")
_JOB = re.compile(r"[A-Za-z0-9._:+-]{1,128}\Z")

Json = dict[str, Any]
T = TypeVar("T")


class CliError(Exception):
    """A command that cannot be answered. The text is for people; code is the exit status."""

    def __init__(self, text: str, code: int = 2) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """PEM files for https: the collector's CA (empty: the system's), and the reader's certificate and key."""

    ca: str = ""
    certificate: str = ""
    key: str = ""

    def context(self, url: str) -> ssl.SSLContext:
        """Make what httpx verifies with. Raises CliError that names option and file."""
        given = [
            name
            for name, file in (("--ca", self.ca), ("--cert", self.certificate), ("--key", self.key))
            if file
        ]
        if given and not url.startswith("https://"):
            raise CliError(f"{given[0]}: expected --url https://HOST:PORT with it, got {clean(url, 200)}")
        if bool(self.certificate) != bool(self.key):
            raise CliError("--cert and --key: expected both or none: a certificate and its key")
        context = _loaded("--ca", self.ca, lambda: ssl.create_default_context(cafile=self.ca or None))
        if self.certificate:
            # an empty password: an encrypted key is an error, not a question that a script waits at
            _loaded(
                "--cert and --key",
                f"{self.certificate}, {self.key}",
                lambda: context.load_cert_chain(self.certificate, self.key, password=""),
            )
        return context


def _loaded(option: str, files: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except OSError as error:  # SSLError is one
        reason = error.strerror or str(error)
        raise CliError(
            f"{option}: expected PEM files, got {clean(files, 200)}: {clean(reason, 200)}"
        ) from None


class Client:
    """One collector's read-only API. All methods raise CliError, whatever goes wrong."""

    def __init__(self, url: str, identity: Identity | None = None, token: str = "") -> None:
        """Connect to `url` (http or https, host and port), as the token's owner; nothing is sent yet."""
        self.url = url.rstrip("/")
        if not re.match(r"https?://[^/\s]+\Z", self.url):
            raise CliError(f"--url: expected http://HOST:PORT or https://HOST:PORT, got {clean(url, 200)}")
        verify = (identity or Identity()).context(self.url)
        # trust_env off: a proxy of the environment must not see, or break, requests to the loopback
        self._http = httpx.Client(
            base_url=self.url, timeout=_TIMEOUT, trust_env=False, verify=verify,
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )  # fmt: skip

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> Json:
        """Return one JSON object of the API, version 1."""
        response = self._send("GET", path, params=query)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise CliError(f"{self.url}{path}: the collector knows nothing by that name", code=1)
        return self._object(path, response)

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send one request; more: what httpx's `request` takes."""
        try:
            return self._http.request(method, path, **more)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise CliError(_unreachable(self.url, error)) from None

    def _object(self, path: str, response: httpx.Response) -> Json:
        """Return a successful answer's JSON object."""
        if not response.is_success:
            raise CliError(
                f"{self.url}{path}: HTTP {response.status_code}: {clean(response.text, 300) or 'no text'}"
            )
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict) or value.get("version") != 1:
            shown = clean(response.text, 80)
            raise CliError(f"{self.url}{path}: expected a gpuvigil collector's API version 1, got {shown!r}")
        return value

    def items(self, path: str, **query: str | int) -> list[Json]:
        """Return all items of a paginated list."""
        found: list[Json] = []
        cursor: str | int | None = None
        while True:
            page = self.get(path, **query, limit=_PAGE, **({} if cursor is None else {"cursor": cursor}))
            rows = page.get("items", [])
            found += [row for row in rows if isinstance(row, dict)]
            cursor = page.get("next")
            if cursor is None or not rows or len(found) >= _ITEMS_MAX:
                return found

    def goodput(self, job: str) -> Json:
        """Return one job's account; exit status 1 when there is none."""
        _check_job(job)
        return self._one(
            f"/api/v1/goodput/{job}", f"no job {job} has an account at {self.url}; see: gpuvigil jobs"
        )

    def ask(self, job: str, what: str, **query: str) -> Json:
        """Ask a job for a checkpoint or a restart. Raises CliError, status 1, with the collector's reason."""
        _check_job(job)
        path = f"/api/v1/jobs/{job}/{what}"
        response = self._send(
            "POST", path, params=query, headers={"X-Gpuvigil-Request": "1"}, timeout=_ASK_TIMEOUT_S
        )
        return self._answered(path, response)

    def say(self, path: str, **said: str | float) -> Json:
        """Say something to the collector. Raises CliError, status 1, with its reason where it refuses."""
        headers = {"X-Gpuvigil-Request": "1"}
        response = self._send("POST", path, json=said, headers=headers, timeout=_ASK_TIMEOUT_S)
        return self._answered(path, response)

    def _answered(self, path: str, response: httpx.Response) -> Json:
        if response.status_code == httpx.codes.CONFLICT:
            raise CliError(_reason(response), code=1)
        if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise CliError(
                f"{self.url}{path}: not allowed: expected {_reason(response, 'expected')}, got "
                f"{_reason(response)}. Name it with --token-file; the collector's own is admin.token in its "
                "state directory"
            )
        return self._object(path, response)

    def test_alert(self, lasts: str) -> Json:
        """Ask the collector for a test alert that holds for so long, such as `2min`."""
        path, headers = "/api/v1/test-alert", {"X-Gpuvigil-Request": "1"}
        return self._answered(path, self._send("POST", path, params={"for": lasts}, headers=headers))

    def incident(self, incident: str) -> Json:
        """Return one incident with its findings and journal; exit status 1 when there is none."""
        if not _INCIDENT_ID.match(incident):
            raise CliError(f"incident id: expected letters, digits, . _ -, got {clean(incident, 120)!r}")
        return self._one(
            f"/api/v1/incidents/{incident}",
            f"no incident {incident} at {self.url}; see: gpuvigil incidents --all",
        )

    def _one(self, path: str, absent: str) -> Json:
        """Return one thing by its name; `absent` says, with exit status 1, that there is none."""
        try:
            return self.get(path)
        except CliError as error:
            if error.code == 1:
                raise CliError(absent, 1) from None
            raise


def _check_job(job: str) -> None:
    if not _JOB.match(job):
        raise CliError(f"job: expected letters, digits and ._:+-, got {clean(job, 130)!r}")


def _reason(response: httpx.Response, part: str = "got") -> str:
    """Return the sentence of a refusal, or another part of it; whatever came, cleaned."""
    try:
        return clean(response.json()["error"][part], 500)
    except (ValueError, KeyError, TypeError):
        return clean(response.text, 300)


def _unreachable(url: str, error: Exception) -> str:
    reason = clean(error, 200) or type(error).__name__
    return (
        f"no collector answers at {url} ({reason}). Start one with: gpuvigil-collector --config "
        "/etc/gpuvigil/collector.toml, try one out with: gpuvigil demo, "
        "or name another with --url or GPUVIGIL_URL. With TLS it wants --url https://HOST:PORT, --ca, --cert "
        "and --key"
    )
