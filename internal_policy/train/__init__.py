"""Train a model on its internal policies, and log what happens to its layers."""
