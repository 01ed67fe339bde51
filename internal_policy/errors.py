"""What was asked for and cannot be done, in one sentence with the remedy."""


class InputError(ValueError):
    """Bad input: the message says what came, what was expected and what to do; the command line exits with 2."""
