"""Samplers: one file a concern, one row each in the table of schedule.py."""
