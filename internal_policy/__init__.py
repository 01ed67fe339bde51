"""See what every layer, attention block and FFN of a language model would say next, and how sure it is.

A hidden state at a hook point, times the unembedding, is a policy.

    import internal_policy as ip

    with ip.hooked(model, ["5.attn_out"], lambda point, hidden: print(ip.unembed(model, hidden).shape)):
        model(**inputs)
    with ip.as_policy(model, "5.resid_post"):                           # inside, the model is layer 5
        model.generate(**inputs)

`dir(internal_policy)` lists everything public. Each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internal_policy.errors import InputError
    from internal_policy.models.hooks import FINAL, HookPoint, hooked
    from internal_policy.models.policy import as_policy, unembed
    from internal_policy.train.bupo import BuPOTrainer
    from internal_policy.train.configuration import BuPOConfig

    __version__: str

__all__ = [
    "FINAL",
    "BuPOConfig",
    "BuPOTrainer",
    "HookPoint",
    "InputError",
    "__version__",
    "as_policy",
    "hooked",
    "unembed",
]

_MODULE_OF = {
    **dict.fromkeys(("FINAL", "HookPoint", "hooked"), "models.hooks"),
    **dict.fromkeys(("as_policy", "unembed"), "models.policy"),
    "BuPOConfig": "train.configuration",
    "BuPOTrainer": "train.bupo",
    "InputError": "errors",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("internal-policy")
    elif name in _MODULE_OF:
        value = getattr(import_module(f"internal_policy.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return sorted(__all__)
