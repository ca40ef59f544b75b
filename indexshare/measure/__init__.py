"""How fast and how large a model runs on this machine, beside what the machine can do."""
