"""Tests of M6."""
