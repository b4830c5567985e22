"""[alerting] of the collector's config: who tells people, and how Alertmanagers are reached."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from gpuvigil_protos.settings import ConfigError, Seconds, is_loopback

OWN_LABELS: Final = frozenset(
    {"alertname", "severity", "class", "scope", "node", "gpu", "uuid", "entity", "fingerprint", "synthetic"}
)
# what tells one replica's alert from another's: with it, one incident would be two alerts
_REPLICA_LABELS: Final = frozenset({"instance", "job", "replica", "prometheus_replica", "__replica__"})
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}\Z")
_URL: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?\Z")
REPLICAS_MAX: Final = 10
LABELS_MAX: Final = 10
_TEXT_MAX: Final = 200
SECRET_MAX_BYTES: Final = 64 * 1024


class AlertAuth(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Who we are to Alertmanager: basic (user and the file of its password) or bearer (file of the token).

    Files are read at each request, so that a rotated secret needs no restart.
    """

    user: str = ""
    password_file: str = ""
    token_file: str = ""

    @property
    def enabled(self) -> bool:
        """True where a secret is sent."""
        return bool(self.password_file or self.token_file)


class AlertTls(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """PEM files for https: Alertmanager's CA (empty: the system's), our certificate and key if asked for."""

    ca: str = ""
    certificate: str = ""
    key: str = ""

    def context(self, origin: str) -> ssl.SSLContext:
        """Make what a client verifies with. Raises ConfigError that names key and file."""
        if bool(self.certificate) != bool(self.key):
            raise ConfigError(f"{origin}: expected certificate and key, or neither, got one of them")
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except OSError as error:  # SSLError is one
            raise ConfigError(f"{origin}.ca: {self.ca}: {error.strerror or error}") from None
        try:
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:
            files = f"{self.certificate}, {self.key}"
            raise ConfigError(f"{origin}.certificate, key: {files}: {error.strerror or error}") from None
        return context


class AlertingConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """mode: rules (Prometheus asks our metrics endpoint) or api (we post); one of them tells of an incident.

    alertmanagers: every replica. In mode rules they are only read: silences, and whether a test alert came.
    labels: added to every alert in mode api; in mode rules, the labels that your Prometheus adds.
    resend: how often an open alert is posted again; it ends by itself four times as long after the last.
    synthetic: False: drills alert nobody. insecure: http off loopback, on a network that you trust.
    runbooks, dashboard: where annotations point; "" leaves them out.
    """

    mode: Literal["rules", "api"] = "rules"
    alertmanagers: list[str] = msgspec.field(default_factory=list)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    resend: Seconds = Seconds(60)
    timeout: Seconds = Seconds(5)
    synthetic: bool = True
    silences: bool = True
    silences_interval: Seconds = Seconds(15)
    runbooks: str = ""
    dashboard: str = ""
    insecure: bool = False
    auth: AlertAuth = AlertAuth()
    tls: AlertTls = AlertTls()

    def check(self, origin: str) -> None:
        """Raise ConfigError that names the key, what was expected and what came."""
        where = f"{origin}: alerting"
        if self.mode == "api" and not self.alertmanagers:
            raise ConfigError(
                f'{where}.alertmanagers: mode = "api" expected at least one URL such as '
                '"http://127.0.0.1:9093", got none'
            )
        self._check_urls(where)
        self._check_times(where)
        _check_labels(self.labels, f"{where}.labels")
        _check_auth(self.auth, f"{where}.auth")
        self.tls.context(f"{where}.tls")

    def _check_urls(self, where: str) -> None:
        if len(self.alertmanagers) > REPLICAS_MAX:
            got = len(self.alertmanagers)
            raise ConfigError(f"{where}.alertmanagers: expected at most {REPLICAS_MAX} URLs, got {got}")
        if len({address_of(url) for url in self.alertmanagers}) < len(self.alertmanagers):
            raise ConfigError(f"{where}.alertmanagers: expected each replica once, got one twice")
        for url in self.alertmanagers:
            _check_url(url, f"{where}.alertmanagers")
            plain = url.startswith("http://") and not is_loopback(_with_port(url))
            if plain and not self.insecure:
                raise ConfigError(
                    f"{where}.alertmanagers: {url} is not on loopback: expected https://, or "
                    "alerting.insecure = true to send in plain text all the same"
                )
            if plain and self.auth.enabled:
                raise ConfigError(
                    f"{where}.auth: a secret is never sent in plain text off loopback: expected https://, "
                    f"got {url}"
                )
        for name in ("runbooks", "dashboard"):
            if getattr(self, name):
                _check_url(getattr(self, name), f"{where}.{name}")

    def _check_times(self, where: str) -> None:
        for name, least, most in (("resend", 30, 180), ("timeout", 0.1, 30), ("silences_interval", 1, 300)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f'{where}.{name}: expected "{least}s" to "{most}s", got {value:g} s')


def address_of(url: str) -> str:
    """Return `host:port/path` of an Alertmanager: its name in metrics and messages."""
    return url.partition("://")[2].rstrip("/")


def _with_port(url: str) -> str:
    host = urlsplit(url).hostname or ""
    return f"[{host}]:0" if ":" in host else f"{host}:0"


def _check_url(url: str, where: str) -> None:
    try:
        good = bool(_URL.match(url)) and urlsplit(url).port != 0 and bool(urlsplit(url).hostname)
    except ValueError:  # a port that is no number, a bracket that is not closed
        good = False
    if not good or not url.isprintable() or len(url) > _TEXT_MAX:
        raise ConfigError(f'{where}: expected a URL such as "https://HOST:PORT", got "{url[:_TEXT_MAX]}"')


def _check_labels(labels: dict[str, str], where: str) -> None:
    if len(labels) > LABELS_MAX:
        raise ConfigError(f"{where}: expected at most {LABELS_MAX} labels, got {len(labels)}")
    for name, value in labels.items():
        if not _LABEL.match(name) or name.startswith("__"):
            raise ConfigError(f'{where}: expected a label name of letters, digits and _, got "{name[:100]}"')
        if name in OWN_LABELS:
            raise ConfigError(f"{where}.{name}: expected a label that gpuvigil does not set itself")
        if name in _REPLICA_LABELS:
            raise ConfigError(
                f"{where}.{name}: expected no label that differs between collectors or Prometheus servers: "
                "one incident would be two alerts"
            )
        if not value or len(value) > _TEXT_MAX or not value.isprintable():
            raise ConfigError(f"{where}.{name}: expected 1 to {_TEXT_MAX} printable characters")


def _check_auth(auth: AlertAuth, where: str) -> None:
    if auth.token_file and (auth.user or auth.password_file):
        raise ConfigError(f"{where}: expected user and password_file, or token_file, got both")
    if bool(auth.user) != bool(auth.password_file):
        raise ConfigError(f"{where}: expected user and password_file together, got one of them")
    for name in ("password_file", "token_file"):
        if getattr(auth, name):
            read_secret(getattr(auth, name), f"{where}.{name}")


def read_secret(file: str, where: str) -> str:
    """Return a secret's one line. Raises ConfigError that names the file and never shows what is in it."""
    try:
        with Path(file).open("rb") as opened:
            raw = opened.read(SECRET_MAX_BYTES + 1)
        text = raw.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: {file}: expected one line of ASCII characters") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{where}: {file} cannot be read: {why}") from None
    if not text or len(raw) > SECRET_MAX_BYTES or not text.isprintable():
        raise ConfigError(f"{where}: {file}: expected one line of printable characters")
    return text
