"""Helpers for every other room: disk, hashes, processes, random state."""
