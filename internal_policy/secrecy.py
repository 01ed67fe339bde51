"""Hide passwords and tokens in everything that is saved."""

import json
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
ANYWHERE = {
    "secret", "secrets", "password", "passwd", "passphrase", "pw", "pwd", "apikey", "credential", "credentials",
    "bearer",
}  # fmt: skip
"""Words that mark a name as a secret."""
AT_THE_END = {"token", "key", "auth", "authorization"}
"""Words that mark a name as a secret if they come last."""
SPECIAL = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|image|video|audio|bo\w|eo\w)_token")
"""Names of vocabulary tokens, which aren't secrets."""
CREDENTIALS = re.compile(r"(?:(?<=://)|(?<=\w\w:/))[^/\s@]+(?=@)")  # a path joins the slashes
SHAPED = re.compile(
    r"""(?<![\w/.-])(?:
        hf_[A-Za-z0-9]{6,}+ | gh[oprsu]_[A-Za-z0-9]{6,}+ | github_pat_\w{6,}+ | AKIA[A-Z0-9]{12,}+
        | (?:sk|xox[abeoprs])-(?=[\w-]*[A-Z0-9])[\w-]{6,}+
        | eyJ[\w-]{4,}+\.[\w-]+\.[\w-]++
        | (?i:bearer)\s+(?=\S*[0-9])(?=\S{8})[\w~+/=-]+(?:\.[\w~+/=-]+)*+
    )(?![\w/-]|\.\w)""",
    re.VERBOSE,
)
"""Keys of Hugging Face, GitHub, AWS, OpenAI and Slack, and bearer tokens; names of files and paths don't match."""
PATHS = "content"
"""Key of the details of each file or data set; the keys below it are their paths."""
PARAMETER = re.compile(r"(?<=[?&])([^=&\s]+)=[^&\s]+")
NAMED = re.compile(
    r"""(?P<before>
        (?P<quote>["'])(?P<key>[\w-]+)(?P=quote)\s*:\s*  # "api_key": x
        | (?<![\w-])(?P<compound>[A-Za-z]\w*[_-][\w-]*):\s+  # api_key: x
        | (?<![\w-])(?P<name>--[\w-]+|[A-Za-z][\w-]*)=  # token=x
        | (?P<option>--[\w-]+)\s+  # --hub-token x
    )(?P<value>[\[({]*(?:"[^"]*"?|'[^']*'?|[^\s"',;&})\]]+))""",
    re.VERBOSE,
)
"""A name and its value in a sentence, in JSON, in YAML, and on a command line."""
LOGIN = re.compile(r"(?<![\w/.-])[\w.-]+:[^\s@:,/]+(?=@[\w.-])")
"""A name and a password before a host, without the scheme of an address."""


def redacted(value: Any) -> Any:
    """The value with secrets hidden: values of secret keys, texts that look like keys or tokens, credentials in URLs.

    JSON texts are searched too.
    """
    if isinstance(value, Mapping):
        return {
            key: _redacted_paths(item) if key == PATHS and isinstance(item, Mapping) else _redacted_item(key, item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return _redacted_text(value) if isinstance(value, str) else value


def printable(text: str) -> str:
    """A sentence or a command for people with secrets hidden, also where a name in it marks its value as one."""
    text, start = LOGIN.sub(HIDDEN, _redacted_text(text)), 0
    while found := NAMED.search(text, start):
        name = found["key"] or found["compound"] or found["name"] or found["option"]
        if is_secret(name.lstrip("-"), found["value"]):
            text = text[: found.start("value")] + HIDDEN + text[found.end() :]
        start = found.end("before")
    return text


def _redacted_item(key: Any, item: Any) -> Any:
    return HIDDEN if is_secret(key, item) else redacted(item)


def _redacted_paths(known: Mapping[str, Any]) -> dict[str, Any]:
    """The details of each path; words in the path itself don't mark it as a secret."""
    return {
        path: redacted(item) if isinstance(item, Mapping) else _redacted_item(path, item)
        for path, item in known.items()
    }


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
            arguments = json.loads(brace + rest)
        except (ValueError, RecursionError):
            arguments = None
        if (shown := redacted(arguments)) != arguments:
            return name + json.dumps(shown, ensure_ascii=False)
    text = SHAPED.sub(HIDDEN, CREDENTIALS.sub(HIDDEN, text))
    return PARAMETER.sub(lambda match: f"{match[1]}={HIDDEN}" if is_secret(match[1], "x") else match[0], text)
