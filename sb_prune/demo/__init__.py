"""Demos of recipes on speech that is synthesised on the spot."""
