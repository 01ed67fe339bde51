"""Fitted readouts: the tuned lens."""
