"""What was asked for and cannot be done, in one sentence with the remedy."""


class InputError(ValueError):
    """Bad input: the message says what came, what was expected and what to do; the command line exits with 2."""


def first_line(error: Exception) -> str:
    """What an error says, as part of a sentence."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
