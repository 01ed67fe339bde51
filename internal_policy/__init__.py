"""See what every layer, attention block and FFN of a language model would say next, and how sure it is.

A hidden state at a hook point, times the unembedding, is a policy.

    import internal_policy as ip

    model, tokenizer = ip.load("demo-qwen3")                            # or "Qwen/Qwen3-4B", or a folder
    ip.lens(model, tokenizer, "47 + 385 =")                             # what each layer would say next
    rollouts = ip.generate(model, tokenizer, ["What is 47 + 385?"])     # sampled and kept as token ids
    scan = ip.scan(model, tokenizer, rollouts)                          # every internal policy at every token
    scan.means()                                                        # entropies by layer and site
    scan.plot.flow()                                                    # the paper's Fig. 2
    with ip.as_policy(model, "5.resid_post"):                           # inside, the model is layer 5
        ip.generate(model, tokenizer, ["What is 47 + 385?"])

`dir(internal_policy)` lists everything public. Each name is imported when it is first used, and looking at a scan
(`open_scan`, `open_alignment`, `open_run`, `open_study`) never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internal_policy.api import generate, lens, scan
    from internal_policy.errors import InputError
    from internal_policy.look.aligned import open_alignment
    from internal_policy.look.merging import merge
    from internal_policy.look.run import open_run
    from internal_policy.look.scan import open_scan
    from internal_policy.look.study import open_study
    from internal_policy.models.ablation import ablated
    from internal_policy.models.hooks import FINAL, HookPoint, hooked
    from internal_policy.models.loading import load
    from internal_policy.models.policy import as_policy, unembed
    from internal_policy.models.trial import admit
    from internal_policy.train.align import align
    from internal_policy.train.bupo import BuPOTrainer
    from internal_policy.train.configuration import BuPOConfig
    from internal_policy.train.scan_callback import ScanCallback

__version__ = "0.2.0"

__all__ = [
    "FINAL",
    "BuPOConfig",
    "BuPOTrainer",
    "HookPoint",
    "InputError",
    "ScanCallback",
    "__version__",
    "ablated",
    "admit",
    "align",
    "as_policy",
    "generate",
    "hooked",
    "lens",
    "load",
    "merge",
    "open_alignment",
    "open_run",
    "open_scan",
    "open_study",
    "scan",
    "unembed",
]

_MODULE_OF = {
    **dict.fromkeys(("generate", "lens", "scan"), "api"),
    **dict.fromkeys(("FINAL", "HookPoint", "hooked"), "models.hooks"),
    **dict.fromkeys(("as_policy", "unembed"), "models.policy"),
    "BuPOConfig": "train.configuration",
    "BuPOTrainer": "train.bupo",
    "InputError": "errors",
    "ScanCallback": "train.scan_callback",
    "ablated": "models.ablation",
    "admit": "models.trial",
    "align": "train.align",
    "load": "models.loading",
    "merge": "look.merging",
    "open_alignment": "look.aligned",
    "open_run": "look.run",
    "open_scan": "look.scan",
    "open_study": "look.study",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562). Raises ImportError, naming the extra to install."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"internal_policy.{_MODULE_OF[name]}"
    try:
        value = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        extra = "train" if ".train." in module else "models"
        missing = str(error.name).partition(".")[0]
        remedy = f"Install it with `pip install 'internal-policy[{extra}]'`."
        raise ImportError(f"{name} needs {missing}. {remedy}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return sorted(__all__)
