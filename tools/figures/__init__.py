"""The site's figures, drawn at build time from constants, results and traces.

A figure is a function registered under a name; a page places it with ``<!-- figure: name -->``.
Every module of this package is imported when the first figure is drawn.
"""
