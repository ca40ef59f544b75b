"""Measurements of trained models on held-out text."""
