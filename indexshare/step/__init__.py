"""The native decode step: all layers of a model in one C++ call."""
