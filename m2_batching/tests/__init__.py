"""Tests of M2."""
