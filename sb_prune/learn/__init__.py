"""Chooses the units to keep: by gates or scores, within a budget."""
