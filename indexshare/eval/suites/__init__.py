"""Suites: what `indexshare eval` can measure. Each is one object; `registry.py` lists them."""
