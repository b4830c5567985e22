"""Ingest workers: validate, ledger, recordings, shared-memory ring."""
