"""The ways to have an effect. execute.py alone may import this package (an import contract says so)."""
