"""Problems, the prompts made of them, and the responses with their marks."""
