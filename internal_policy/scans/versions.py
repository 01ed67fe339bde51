"""The versions of this package and of those that it uses, for the records of what was measured."""

from collections.abc import Iterable
from importlib import metadata

import internal_policy

OURS = "internal-policy"


def of(packages: Iterable[str]) -> dict[str, str]:
    """Distribution -> its version. Ours is that of the code which runs, even if an older one was installed."""
    return {name: internal_policy.__version__ if name == OURS else metadata.version(name) for name in packages}
