"""Is a checkpoint right, and does another program compute it as this one does? Names the convention that differs."""
