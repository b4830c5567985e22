"""The training loop's judges: hang, slowdown, dead ranks and broken losses, one job at a time.

Pure: others feed them. All that a job says of itself is one trust origin, `job`, whatever judge repeats it.
"""
