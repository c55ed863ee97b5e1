"""Benchmarks of M5."""
