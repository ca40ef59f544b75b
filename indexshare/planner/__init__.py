"""Answers about size before anything is loaded. Plain Python, no torch."""
