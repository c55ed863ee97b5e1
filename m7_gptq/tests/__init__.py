"""Tests of M7."""
