"""Alert: what Alertmanager is told of an incident. Pure; labels are its identity: nothing in them may move.

Labels are the same in mode rules (deploy/prometheus/rules) and for every collector that sees the incident: no
incident id, score or GPU index (one that is lost moves the others) among them; those are annotations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from gpuvigil_collector.alerting.names import BY_CLASS, TEST_ALERT, TEST_SUMMARY
from gpuvigil_collector.alerting.settings import AlertingConfig
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_detectors.base import SEVERITIES
from gpuvigil_protos import entity as names
from gpuvigil_protos.text import printable

Key = tuple[tuple[str, str], ...]
"""An alert's labels, sorted: what Alertmanager tells alerts apart by."""

ALERTS_MAX: Final = 2000
_ANNOTATION_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert. starts_ns: when the incident opened. ends_ns: when it ended, 0 while it is open."""

    labels: Key
    annotations: tuple[tuple[str, str], ...]
    starts_ns: int
    ends_ns: int = 0


def labels_of(incident: Incident, extra: Mapping[str, str]) -> Key:
    """Return the labels of an incident's alert; empty ones are left out, as Prometheus does."""
    local = incident.target.partition("/")[2]
    labels = {
        **extra,
        "alertname": BY_CLASS[incident.fault_class].name,
        "severity": incident.severity,
        "class": incident.fault_class,
        "scope": incident.scope,
        "node": incident.node,
        "uuid": names.gpu_uuid_of(local) or "",
        "entity": local,
        "fingerprint": incident.fingerprint,
        "synthetic": "true" if incident.synthetic else "",
    }
    return tuple(sorted((name, value) for name, value in labels.items() if value))


def alert_of(incident: Incident, config: AlertingConfig) -> Alert:
    """Turn an open incident into its alert."""
    row = BY_CLASS[incident.fault_class]
    annotations = {
        "summary": row.summary,
        "description": incident.cause,
        "incident": incident.id,
        "evidence": f"{len(incident.findings)} findings; gpuvigil why {incident.id}",
        "gpus_at_stake": str(incident.gpus),
        **_links(row.name, incident.node, config),
    }
    return Alert(
        labels=labels_of(incident, config.labels),
        annotations=_bounded(annotations),
        starts_ns=incident.opened_ns,
    )


def trial_of(starts_ns: int, config: AlertingConfig) -> Alert:
    """Return the alert of `gpuvigil test-alert`."""
    labels = {**config.labels, "alertname": TEST_ALERT, "severity": "info", "synthetic": "true"}
    annotations = {
        "summary": TEST_SUMMARY,
        "description": "It ends by itself.",
        **_links(TEST_ALERT, "", config),
    }
    return Alert(labels=tuple(sorted(labels.items())), annotations=_bounded(annotations), starts_ns=starts_ns)


def wanted(incidents: Iterable[Incident], config: AlertingConfig) -> tuple[dict[Key, Alert], int]:
    """Return the alerts of the open incidents, the gravest ALERTS_MAX, and how many are left out."""
    shown = [one for one in incidents if config.synthetic or not one.synthetic]
    shown.sort(key=lambda one: (-SEVERITIES.index(one.severity), one.opened_ns, one.id))
    alerts: dict[Key, Alert] = {}
    for incident in shown[:ALERTS_MAX]:
        alert = alert_of(incident, config)
        alerts.setdefault(alert.labels, alert)
    return alerts, max(0, len(shown) - ALERTS_MAX)


def _links(name: str, node: str, config: AlertingConfig) -> dict[str, str]:
    links = {}
    if config.runbooks:
        links["runbook_url"] = f"{config.runbooks.rstrip('/')}/{name}.md"
    if config.dashboard:
        links["dashboard_url"] = config.dashboard + (f"?var-node={quote(node)}" if node else "")
    return links


def _bounded(annotations: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Text from outside is one printable line of bounded length in every annotation."""
    return tuple((name, printable(text[:_ANNOTATION_MAX])) for name, text in annotations.items())


def wire(alert: Alert, now_ns: int, stays_s: float) -> dict[str, Any]:
    """Write an alert as Alertmanager's API v2 takes it.

    An open one ends `stays_s` ahead, so that a collector that dies leaves none for ever. Never ends before it
    starts, whatever the clock did: Alertmanager would refuse the whole request.
    """
    ends_ns = alert.ends_ns or now_ns + int(stays_s * 1e9)
    return {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "startsAt": _rfc3339(min(alert.starts_ns, now_ns, ends_ns)),
        "endsAt": _rfc3339(ends_ns),
    }


def _rfc3339(time_ns: int) -> str:
    whole, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
