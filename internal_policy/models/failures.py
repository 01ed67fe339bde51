"""Turn the errors of transformers and the hub into one sentence with the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from internal_policy.errors import InputError


@contextmanager
def explained(name: str, revision: str, files: str = "files") -> Iterator[None]:
    """Raise what fails inside as an InputError about the model `name`, with the remedy: often to check its `files`."""
    import huggingface_hub.errors as hub

    try:
        yield
    except hub.GatedRepoError as error:
        raise InputError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then log in with `hf auth login`."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision '{revision}'; see https://huggingface.co/{name}.") from error
    except hub.HFValidationError as error:
        raise InputError(f"'{name}' is neither a folder nor a hub id such as Qwen/Qwen3-0.6B.") from error
    except hub.RepositoryNotFoundError as error:
        raise InputError(f"There is no folder or hub model '{name}'. Check the name, or log in.") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise InputError(
            f"{name} isn't a folder or in the local hub cache, and the hub can't be reached. Check the network, "
            "or use a folder."
        ) from error
    except BaseException as error:  # a configuration or a tokenizer that lies fails in a hundred places
        ours = isinstance(error, InputError | MemoryError) or "out of memory" in str(error)
        panicked = type(error).__name__ == "PanicException"  # how tokenizers, which is Rust, can end
        if ours or not (isinstance(error, Exception) or panicked):
            raise
        raise InputError(f"{name} can't be loaded ({_told(error)}); check its {files}, or get a whole copy.") from error


def _told(error: BaseException) -> str:
    """What an error says, as part of a sentence: the heading of its first line would not tell what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{' '.join(lines[:2]):.300}".rstrip(".:")
    bare = isinstance(error, LookupError | ArithmeticError | AttributeError | TypeError | AssertionError) or not said
    return f"{type(error).__name__}: {said}".removesuffix(": ") if bare else said
