"""Holds the site to its rules: parts of notes and logs, evidence, links, no other origin.

``python -m tools.check_docs`` reads the sources; with ``--site`` it reads the built site too.
"""
