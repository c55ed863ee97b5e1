"""Tests of the built site in a browser: ``make site-test``. Plain ``make test`` does not collect."""
