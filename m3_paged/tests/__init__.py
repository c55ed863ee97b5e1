"""Tests of M3."""
