"""Repair: a case for each incident that policy acts on, taken step by step through the safety kernel."""
