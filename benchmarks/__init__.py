"""Benchmarks: every figure is a ratio to a plain Python loop that does the same work in the same process."""
