"""The site's calculators: what they are given, their tables without scripts, their check."""
