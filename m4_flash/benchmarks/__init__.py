"""Benchmarks of M4."""
