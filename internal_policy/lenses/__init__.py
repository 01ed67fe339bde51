"""What each layer would say next, and fitted readouts: the tuned lens."""
