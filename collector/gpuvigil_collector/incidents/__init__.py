"""Findings of one cause become one incident."""
