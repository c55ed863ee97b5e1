"""Benchmarks of M3."""
