"""Tensors in, numbers out: entropies and other measures of policies."""
