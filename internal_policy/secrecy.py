"""Hide passwords and tokens in everything that is saved."""

import json
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
ANYWHERE = {"secret", "secrets", "password", "passwd", "passphrase", "apikey", "credential", "credentials"}
"""Words that mark a name as a secret."""
AT_THE_END = {"token", "key", "auth", "authorization"}
"""Words that do so at the end of a name."""
SPECIAL = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|image|video|audio|bo\w|eo\w)_token")
"""Names of tokens of a vocabulary, which aren't secrets."""
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
PARAMETER = re.compile(r"(?<=[?&])([^=&\s]+)=[^&\s]+")


def redacted(value: Any) -> Any:
    """The value with secrets hidden: values of secret keys, credentials in URLs, and both inside JSON texts."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if is_secret(key, item) else redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return _redacted_text(value) if isinstance(value, str) else value


def is_secret(key: Any, value: Any) -> bool:
    """Whether a key marks its value as a secret."""
    if not isinstance(key, str) or not value or value is True or SPECIAL.fullmatch(key):
        return False
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower().replace("-", "_").split("_")
    return bool(ANYWHERE & {*words}) or words[-1] in AT_THE_END


def _redacted_text(text: str) -> str:
    name, brace, rest = text.partition("{")
    if brace and (not name or name.endswith("=")):  # --chat-template-kwargs={...}
        try:
            found = json.loads(brace + rest)
        except (ValueError, RecursionError):
            found = None
        if (shown := redacted(found)) != found:
            return name + json.dumps(shown, ensure_ascii=False)
    text = CREDENTIALS.sub(HIDDEN, text)
    return PARAMETER.sub(lambda match: f"{match[1]}={HIDDEN}" if is_secret(match[1], "x") else match[0], text)
