"""The demo: a fleet of real processes with injected faults, and a judge that knows the truth."""
