"""Tests of M1."""
