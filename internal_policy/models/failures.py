"""Turn the errors of transformers and the hub into one sentence with the remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from internal_policy.errors import InputError, is_out_of_memory


@contextmanager
def explained(name: str, revision: str, files: str = "files") -> Iterator[None]:
    """Turn an error raised inside into an InputError about the model `name`, with a remedy such as checking `files`."""
    import huggingface_hub.errors as hub

    try:
        yield
    except hub.GatedRepoError as error:
        raise InputError(
            f"{name} is gated. Accept its terms at https://huggingface.co/{name}, then log in with `hf auth login`."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise InputError(
            f"{name} has no revision '{revision}'. Look it up at https://huggingface.co/{name}."
        ) from error
    except hub.HFValidationError as error:
        raise InputError(f"'{name}' isn't a folder or a hub id. Use one such as Qwen/Qwen3-0.6B.") from error
    except hub.RepositoryNotFoundError as error:
        raise InputError(f"Can't find a folder or hub model '{name}'. Check the name, or log in.") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise InputError(
            f"Can't download {name} because the hub can't be reached, and there is no local copy. Check the network, "
            "or use a folder."
        ) from error
    except BaseException as error:  # an inconsistent configuration or tokenizer can fail anywhere
        ours = isinstance(error, InputError) or is_out_of_memory(error)
        panicked = type(error).__name__ == "PanicException"  # from the Rust code of tokenizers
        if ours or not (isinstance(error, Exception) or panicked):
            raise
        if "trust_remote_code=True" in str(error):
            raise InputError(
                f"{name} comes with Python code of its own, which isn't run without your consent. Read it, then add "
                "--trust-remote-code, or trust_remote_code=True in Python."
            ) from error
        raise InputError(f"Can't load {name} ({_told(error)}). Check its {files}, or get a complete copy.") from error


@contextmanager
def attending(name: str | None) -> Iterator[None]:
    """Turn an error of transformers about the attention kernel `name` into one sentence."""
    try:
        yield
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        if name is None or not re.search("attention|attn", reason, re.IGNORECASE):
            raise
        raise InputError(
            f"The attention kernel '{name}' can't be used ({reason.partition('. ')[0]:.200}). Try "
            "--attn-implementation eager or sdpa, or leave it out."
        ) from error


def _told(error: BaseException) -> str:
    """The first two lines of an error, as part of a sentence: the first alone is often just a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{' '.join(lines[:2]):.300}".rstrip(".:")
    bare = isinstance(error, LookupError | ArithmeticError | AttributeError | TypeError | AssertionError) or not said
    return f"{type(error).__name__}: {said}".removesuffix(": ") if bare else said
