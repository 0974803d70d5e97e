"""Public physics benchmarks: clips generated once, laid out as each official scorer wants them, read back
into one table.
"""
