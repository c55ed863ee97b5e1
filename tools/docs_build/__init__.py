"""Turns ``docs/``, the stages' READMEs, notebooks and result files into what MkDocs builds.

``python -m tools.docs_build`` writes ``build/docs`` and ``build/mkdocs.yml``. Directives and tokens
of a page (``docs/dev/writing.md`` lists them) become code, tables, figures and numbers; one that
points at nothing fails the build with the page and the line.
"""
