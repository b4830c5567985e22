"""The training loop's judges: hang, slowdown, dead ranks and broken losses, one job at a time."""
