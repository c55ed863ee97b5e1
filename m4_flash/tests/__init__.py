"""Tests of M4."""
