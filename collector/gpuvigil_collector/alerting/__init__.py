"""From incidents to people: Prometheus' rules or Alertmanager's API, and Alertmanager's silences."""
