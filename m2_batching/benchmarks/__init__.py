"""Benchmarks of M2."""
