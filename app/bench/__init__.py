"""Benchmarks of the field: what they ask, of which videos and when, and how their answers are marked."""
