"""Simulated driver, host and kernel log for machines without GPUs."""
