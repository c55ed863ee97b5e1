"""Benchmarks of M7."""
