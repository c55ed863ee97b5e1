"""Benchmarks of M1."""
