"""Weights of 8 and 4 bits, packed for the processor."""
