"""Tests of the built site in a browser, for ``make site-test`` alone."""
