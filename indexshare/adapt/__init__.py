"""Changes to a loaded model, made from outside: packed weights."""
