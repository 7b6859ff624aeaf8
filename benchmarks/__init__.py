"""Benchmarks: ours against a named baseline in the same run."""
