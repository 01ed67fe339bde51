"""Read the same hidden states through TransformerLens and nnsight."""
