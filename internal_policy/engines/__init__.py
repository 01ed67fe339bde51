"""Engines that sample responses or run the model elsewhere: Ray, vLLM or a server."""
