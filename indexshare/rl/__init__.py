"""Reinforcement learning: trajectories, credit, losses, rollouts on the engine, and the trainer that joins them."""
