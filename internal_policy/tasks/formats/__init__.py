"""Read the responses that other tools wrote."""
