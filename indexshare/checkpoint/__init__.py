"""Checkpoint files: names, matching, reading, writing."""
