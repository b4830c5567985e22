"""The node daemon: polls the node, spools, streams."""
