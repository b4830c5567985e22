"""Checkpoints on request: who may ask, what the ranks answered, which checkpoint is the newest."""
