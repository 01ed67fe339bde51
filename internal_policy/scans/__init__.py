"""Measure a model over rollouts, and keep the tables on disk."""
