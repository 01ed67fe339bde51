"""Load a model's tokenizer, or tell from its files what its chat template writes."""

from pathlib import Path
from typing import TYPE_CHECKING

from internal_policy.errors import InputError
from internal_policy.models.checkpoint import Checkpoint, base, of_hub
from internal_policy.models.failures import explained
from internal_policy.models.templates import DATE, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
"""Files that hold a model's chat template."""


def load_tokenizer(checkpoint: Checkpoint, chat_template: str | None = None) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, with the chat template from the file `chat_template` if given. Raises InputError.

    An adapter's folder may hold a tokenizer of its own; otherwise the base model's is loaded.
    """
    checkpoint = _with_tokenizer(checkpoint)
    with explained(checkpoint.name, checkpoint.revision, "tokenizer.json and tokenizer_config.json"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.place,
            revision=checkpoint.revision,
            trust_remote_code=checkpoint.trust_remote_code,
            gguf_file=checkpoint.gguf_file,
        )
        tokenizer("tried")
        for token, number in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
            if not isinstance(number, int):
                raise ValueError(f"its special token {token!r} is not in the vocabulary")
    if len(tokenizer) < 2:
        raise InputError(f"{checkpoint.name} has no tokenizer: tokenizer.json is missing. Copy the whole model.")
    if chat_template not in (None, "none"):
        try:
            tokenizer.chat_template = Template(Path(chat_template).read_text(), chat_template)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Can't read the chat template {chat_template} ({error}). Use a Jinja file.") from error
    return tokenizer


def _with_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, or its base model if it is an adapter without a tokenizer of its own."""
    own = checkpoint.gguf_file is not None or any((checkpoint.folder / name).is_file() for name in TOKENIZER)
    return checkpoint if own else base(checkpoint)


def inserts_date(checkpoint: Checkpoint, chat_template: str | None) -> bool:
    """Whether the chat template writes the date, as Llama 3.2's does, without loading the tokenizer, which is slow.

    Raises InputError for a hub model that can't be downloaded.
    """
    if chat_template == "none":
        return False
    checkpoint = _with_tokenizer(checkpoint)
    if chat_template is not None:
        paths = [Path(chat_template)]
    elif checkpoint.gguf_file is not None:
        return DATE in (load_tokenizer(checkpoint).chat_template or "")
    elif checkpoint.folder.is_dir():
        paths = [checkpoint.folder / name for name in TEMPLATES]
    else:
        paths = [path for name in TEMPLATES if (path := of_hub(checkpoint, name))]
    return any(DATE.encode() in path.read_bytes() for path in paths if path.is_file())
