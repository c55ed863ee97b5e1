"""Drills: a working copy of a stage whose key functions are blanked, and the tests that grade it.

A stage lists its drills in ``mN_name/drills.toml`` and plausible wrong answers in
``mN_name/drills_wrong.toml``; its source carries no marks. ``docs/lab/drills.md`` is the user's
guide.
"""
