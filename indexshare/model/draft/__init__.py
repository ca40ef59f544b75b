"""Drafters: layers that guess the tokens after the next one."""
