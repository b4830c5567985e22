"""Prints the rule file of the incidents' alerts, made from alerts.toml.

    python -m gpuvigil_collector.alerting.rules

The labels are those of mode api. Two collectors' series of one incident are one alert; a collector in mode
api posts its incidents itself, so its series fire nothing here.
"""

from __future__ import annotations

import json
import sys
from typing import Final

from gpuvigil_collector.alerting.names import ROWS, Row

RUNBOOKS: Final = "https://gpuvigil.example/runbooks"  # sites replace it: docs/alerting.md
DASHBOARD: Final = "https://grafana.example/d/gpuvigil"
_LABELS: Final = "class, severity, scope, node, uuid, entity, fingerprint, synthetic"
_INDEX: Final = (
    "{{ with printf \"gpuvigil_incident_open{fingerprint='%s'}\" $labels.fingerprint | query }}"
    '{{ with . | first | label "gpu" }}, GPU {{ . }}{{ end }}'
    '; gpuvigil why {{ . | first | label "incident" }}{{ end }}'
)
_HEAD: Final = """\
# Made from alerts.toml by: python -m gpuvigil_collector.alerting.rules. Do not edit: a test compares.
# docs/alerting.md says how to load it and where the two URLs go. Needs Prometheus 2.42 (keep_firing_for).
groups:
  - name: gpuvigil-incidents
    rules:
"""


def expression(row: Row) -> str:
    """Return the PromQL of one alert."""
    series = f'gpuvigil_incident_open{{class=~"{"|".join(row.classes)}"}}'
    quiet = 'gpuvigil_alerting_info{mode="api"}'
    return f"max by ({_LABELS}) ({series} unless on (job, instance) {quiet}) > 0"


def document() -> str:
    """Return the rule file."""
    return _HEAD + "".join(_rule(row) for row in ROWS)


def _rule(row: Row) -> str:
    what = "{{ $labels.class }} ({{ $labels.severity }})"
    where = what + " on {{ $labels.node }} {{ $labels.entity }}"
    annotations = {
        "summary": row.summary,
        "description": where + _INDEX,
        "runbook_url": f"{RUNBOOKS}/{row.name}.md",
        "dashboard_url": DASHBOARD + "?var-node={{ $labels.node }}",
    }
    lines = [
        f"      - alert: {row.name}",
        f"        expr: {json.dumps(expression(row))}",
        "        # over a scrape that failed and a collector that restarts: no false resolve",
        "        keep_firing_for: 1m",
        "        annotations:",
        *(f"          {name}: {json.dumps(text)}" for name, text in annotations.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
