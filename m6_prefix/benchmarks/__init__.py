"""Benchmarks of M6."""
