"""Turn the errors of the Hugging Face Hub into one sentence with the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from internal_policy.errors import InputError, first_line
from internal_policy.scans.address import Address

NETWORK = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}
"""Packages whose errors mean that the Hub can't be reached; each version of huggingface_hub has its own."""
CALLED = {"dataset": "data set", "model": "model"}
LOG_IN = "log in with `hf auth login`"


@contextmanager
def explaining(address: Address, doing: str = "read") -> Iterator[None]:
    """Turn an error of the Hub that is raised inside into an InputError about a repository.

    `doing` is what was tried: read or write. Other errors pass.
    """
    import huggingface_hub.errors as hub

    try:
        yield
    except InputError:
        raise
    except (hub.HfHubHTTPError, hub.HFValidationError, hub.OfflineModeIsEnabled, hub.EntryNotFoundError) as error:
        raise InputError(_said(error, address, doing)) from error
    except Exception as error:
        if (cause := _cause(error)) is not None:  # an upload by several threads hides it
            raise InputError(_said(cause, address, doing)) from error
        if not _is_network(error):
            raise
        raise InputError(_unreachable(address, doing)) from error


def _said(error: Exception, address: Address, doing: str) -> str:
    """An error of the Hub in a sentence."""
    import huggingface_hub.errors as hub

    what, name = CALLED[address.kind], address.repository
    if isinstance(error, hub.LocalEntryNotFoundError | hub.OfflineModeIsEnabled):
        cause = _cause(error)
        return _unreachable(address, doing) if cause is None else _said(cause, address, doing)
    if isinstance(error, hub.HFValidationError):
        return f"'{name}' isn't the name of a repository on the Hub. Write org/name."
    if isinstance(error, hub.GatedRepoError):
        return f"{name} is gated. Accept its terms at {address.page}, then {LOG_IN}."
    if isinstance(error, hub.RevisionNotFoundError):
        return f"{name} has no revision '{address.revision}'. Look it up at {address.page}."
    if isinstance(error, hub.EntryNotFoundError):
        return f"{address} doesn't exist. Look it up at {address.page}."
    status = _status(error)
    if status in (401, 403) and doing == "write":
        return (
            f"The Hub doesn't let you write to {name}. {LOG_IN[0].upper()}{LOG_IN[1:]} with a token that may write, "
            "and check the name of the organisation."
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"Can't find the {what} {name} on the Hub. Check the name; if it is private, {LOG_IN}."
    return _of_status(status, error, name)


def _of_status(status: int | None, error: Exception, name: str) -> str:
    if status in (401, 403):
        return f"The Hub refuses your token for {name}. Log in again with `hf auth login`."
    if status == 429:
        return "The Hub has had too many requests from you. Wait a few minutes, or log in with `hf auth login`."
    if status is not None and status >= 500:
        return f"The Hub has a problem of its own (error {status}). Try again in a few minutes."
    return f"The Hub refused the request about {name} ({_reason(error)}). Check the name and the options."


def _unreachable(address: Address, doing: str) -> str:
    if doing == "write":
        return (
            f"Can't upload to {address.repository} because the Hub can't be reached. Check the network and try again."
        )
    return (
        f"Can't download {address} because the Hub can't be reached, and there is no complete local copy. Check the "
        "network, or unset HF_HUB_OFFLINE if it is set."
    )


def _is_network(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is one of the network."""
    while error is not None:
        if type(error).__module__.partition(".")[0] in NETWORK:
            return True
        error = error.__cause__
    return False


def _cause(error: BaseException) -> Exception | None:
    """The HTTP error that an error was raised from, if there is one."""
    import huggingface_hub.errors as hub

    while (error := error.__cause__) is not None:  # pyright: ignore[reportAssignmentType]
        if isinstance(error, hub.HfHubHTTPError):
            return error
    return None


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: Exception) -> str:
    """What the server said, else the first line of the error."""
    return str(getattr(error, "server_message", None) or first_line(error))[:200].rstrip(".")
