"""Benchmarks: each prints a table and ends with one line of JSON. Timings are ratios within one run."""
