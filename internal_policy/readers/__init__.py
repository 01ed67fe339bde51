"""The same hidden states through the libraries in which people already hold their models."""
