"""Programs that run in a process of their own, so that the package itself never imports what they need."""
