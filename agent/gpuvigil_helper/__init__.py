"""The node's privileged helper: a few fixed verbs, signed orders, its own limits. Its own unit, root."""
