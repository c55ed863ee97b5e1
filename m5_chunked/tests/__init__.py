"""Tests of M5."""
