"""Speed and memory of a model on this machine, compared with what the machine can do."""
