"""Recorded scenarios: what the trace player plays, and the code behind each kind of event."""
