"""The collector: ingest, judge, explain, export."""
