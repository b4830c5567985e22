"""One client of the Kubernetes API: a deadline and a size limit on each call, errors that say what is known.

lightkube reads the kubeconfig or the pod's service account (rotated tokens included) and makes the TLS
client; its typed calls are not used: they have no limit on an answer's size, fix the version of an Eviction,
and cannot read an owner of a kind that they do not know.
Nothing is retried here. Who writes must know whether a request may have had its effect: UnsentError and
StatusError with `certain` say that it has not, everything else that nobody can tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import httpx2
import msgspec
import yaml
from lightkube import ConfigError as LightkubeConfigError
from lightkube import KubeConfig
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.config.kubeconfig import SingleConfig

from gpuvigil_collector.ingest.validate import clean_text
from gpuvigil_protos.settings import ConfigError

FIELD_MANAGER: Final = "gpuvigil"
"""How the server names us in managedFields: who last changed a field tells our cordon from another's."""
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
_ANSWER_BYTES_MAX: Final = 64 << 20
_PAGE: Final = 500
_TEXT_MAX: Final = 300
_NOT_SENT: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
)
_BAD_CONFIG: Final = (LightkubeConfigError, yaml.YAMLError, OSError, ValueError)
# answers of a server that may have stored the change all the same: 500, 502, 503, 504, and its own time-out
_UNCERTAIN: Final = frozenset({408, *range(500, 600)})

T = TypeVar("T", bound=msgspec.Struct)


class KubeError(Exception):
    """The API gave no usable answer; one clean line for people."""

    def __init__(self, text: str) -> None:
        super().__init__(clean_text(text[:_TEXT_MAX]))


class UnsentError(KubeError):
    """No connection: the request was not sent and has no effect."""


class LostError(KubeError):
    """Sent, and no answer, a late one or nonsense: it may have had its effect."""


class StatusError(KubeError):
    """The server refused. code: the HTTP status. retry_s: how long it asks to wait, 0 for nothing said."""

    def __init__(self, code: int, text: str, retry_s: float = 0.0) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.retry_s = code, retry_s

    @property
    def certain(self) -> bool:
        """True when the request has had no effect for certain."""
        return self.code not in _UNCERTAIN


class Page(msgspec.Struct, frozen=True, rename="camel"):
    """A list's own metadata: `continue` holds the next page's token."""

    continue_: str = msgspec.field(default="", name="continue")


class _Status(msgspec.Struct, frozen=True):
    message: str = ""
    reason: str = ""


class Deadline:
    """What is left of a time budget. Every call of one operation shares it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    def left(self) -> float:
        """Return the seconds left, at least a hundredth, so that a late call still fails as one."""
        return max(0.01, self._end - self._clock())

    @property
    def over(self) -> bool:
        """True when nothing is left."""
        return self._clock() >= self._end


class KubeApi:
    """The API of one cluster. Not thread-safe: the executor and the reader have one each."""

    def __init__(self, config: SingleConfig, *, call_s: float = 5.0, as_user: str = "") -> None:
        """call_s: the longest that one call may take. as_user: impersonate it (tests of permissions).

        Raises ConfigError for certificates or an address that cannot be used.
        """
        self._call_s = call_s
        try:
            self._http = Client(config, ConnectionParams(timeout=httpx2.Timeout(call_s), trust_env=False))
        except _BAD_CONFIG as error:
            raise ConfigError(
                f"kubernetes.kubeconfig: {config.fname or 'service account'}: {error}"
            ) from None
        if as_user:
            self._http.headers["Impersonate-User"] = as_user
        self._plurals: dict[tuple[str, str], str] = {}

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get(self, path: str, kind: type[T], deadline: Deadline, **query: str) -> T:
        """Read one object or page. Raises KubeError."""
        return self._decoded(self._send("GET", path, deadline, query), kind, path)

    def items(
        self, path: str, kind: type[Any], deadline: Deadline, limit: int, **query: str
    ) -> Iterator[Any]:
        """Read a list page by page; kind: a struct with `items` and `metadata: Page`.

        Raises KubeError, also when there are more than `limit` objects: part of a fleet is no fleet.
        """
        seen, token = 0, ""
        while True:
            more = {"limit": str(_PAGE), **query, **({"continue": token} if token else {})}
            page = self.get(path, kind, deadline, **more)
            seen += len(page.items)
            if seen > limit:
                raise KubeError(f"{path}: expected at most {limit} objects, got more")
            yield from page.items
            token = page.metadata.continue_
            if not token:
                return

    def patch(
        self, path: str, body: Mapping[str, Any], kind: type[T], deadline: Deadline, how: str = MERGE
    ) -> T:
        """Change one object. Raises UnsentError, LostError or StatusError."""
        query = {"fieldManager": FIELD_MANAGER}
        return self._decoded(self._send("PATCH", path, deadline, query, body, how), kind, path)

    def post(self, path: str, body: Mapping[str, Any], deadline: Deadline) -> None:
        """Create one object; the answer's body is not used. Raises UnsentError, LostError or StatusError."""
        self._send("POST", path, deadline, {"fieldManager": FIELD_MANAGER}, body)

    def plural(self, group_version: str, kind: str, deadline: Deadline) -> str:
        """Return the path word of a kind ("jobs" of batch/v1 Job), by discovery, remembered.

        Raises KubeError when the server does not serve it.
        """
        if (group_version, kind) not in self._plurals:
            served = self.get(group_path(group_version), Resources, deadline).resources
            self._plurals |= {(group_version, one.kind): one.name for one in served if "/" not in one.name}
        try:
            return self._plurals[group_version, kind]
        except KeyError:
            raise KubeError(f"{group_version} {kind}: the server does not serve this kind") from None

    def _send(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        seconds = min(self._call_s, deadline.left())
        content = None if body is None else msgspec.json.encode(body)
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if content else {})
        request = self._http.build_request(
            method, path, params=dict(query), content=content, headers=headers, timeout=seconds
        )
        end = time.monotonic() + seconds
        try:
            response = self._http.send(request, stream=True)
            try:
                answer = _read(response, end, path)
            finally:
                response.close()
        except _NOT_SENT as error:
            raise UnsentError(f"{method} {path}: no connection to the API server: {error}") from None
        except (httpx2.HTTPError, httpx2.StreamError, LightkubeConfigError, OSError) as error:
            raise LostError(f"{method} {path}: no answer: {type(error).__name__} {error}") from None
        if response.is_success:
            return answer
        raise _refusal(response, answer, f"{method} {path}")

    def _decoded(self, answer: bytes, kind: type[T], path: str) -> T:
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise LostError(f"{path}: an answer that cannot be understood: {error}") from None


class Resource(msgspec.Struct, frozen=True):
    """One row of discovery. group and version: of the kind, where they differ from the list's own."""

    name: str
    kind: str
    group: str = ""
    version: str = ""


class Resources(msgspec.Struct, frozen=True):
    """What discovery answers for a group and version."""

    resources: list[Resource]


def group_path(group_version: str) -> str:
    """Return where a group and version are served: /api/v1 or /apis/batch/v1."""
    return f"/apis/{group_version}" if "/" in group_version else f"/api/{group_version}"


def connection(kubeconfig: str) -> SingleConfig:
    """Read a kubeconfig file, or the pod's service account for "". Raises ConfigError, one line."""
    try:
        known = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_service_account()
        config = known.get()
        server = httpx2.URL(config.cluster.server if config else "")
    except (*_BAD_CONFIG, httpx2.InvalidURL, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"kubernetes.kubeconfig: {kubeconfig or 'service account'}: {error}") from None
    if config is None or config.user is None:
        raise ConfigError(f"kubernetes.kubeconfig: {kubeconfig}: expected a current-context with a user")
    if server.scheme != "https" and server.host not in ("localhost", "127.0.0.1", "::1"):
        raise ConfigError(f"kubernetes.kubeconfig: {kubeconfig}: server: expected https://, got {server}")
    if config.user.exec is not None:
        # the program would run without a deadline, in the middle of an action
        raise ConfigError(
            f"kubernetes.kubeconfig: {kubeconfig}: expected a token, token file or certificate, got a user "
            "with exec: make a service account for gpuvigil (docs/kubernetes.md)"
        )
    return config


def _read(response: httpx2.Response, end: float, path: str) -> bytes:
    """Read the body within time and size: a server that drips must not hold the executor."""
    parts, size = [], 0
    for part in response.iter_bytes():
        size += len(part)
        if size > _ANSWER_BYTES_MAX:
            raise LostError(f"{path}: an answer of more than {_ANSWER_BYTES_MAX} bytes")
        if time.monotonic() > end:
            raise LostError(f"{path}: the answer came too slowly")
        parts.append(part)
    return b"".join(parts)


def _refusal(response: httpx2.Response, answer: bytes, what: str) -> StatusError:
    try:
        status = msgspec.json.decode(answer, type=_Status)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        status = _Status(message=answer[:_TEXT_MAX].decode("utf-8", "replace"))
    wait = response.headers.get("Retry-After", "")
    seconds = float(wait) if wait.isdecimal() and len(wait) < 6 else 0.0
    return StatusError(response.status_code, f"{what}: {status.message or status.reason}", seconds)
