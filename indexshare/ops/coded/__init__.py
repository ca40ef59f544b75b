"""Rows of a cache in few bits (`layout.py`): what they mean, and how kernels are given them."""
