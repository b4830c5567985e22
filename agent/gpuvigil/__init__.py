"""The training hook and the `gpuvigil` dispatcher: standard library alone, Python 3.9+."""
