"""Open the model of a scan in what reads it: hooks of our own, TransformerLens, nnsight, or NDIF."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from internal_policy.errors import InputError
from internal_policy.models import folder, loading
from internal_policy.models.failures import explained

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from internal_policy.cli.scan import Scan
    from internal_policy.scans.reader import Reader

PACKAGES = {"transformer-lens": "transformer_lens", "nnsight": "nnsight"}
"""--reader -> the package it takes, which is an extra of the same name."""


def check(asked: "Scan") -> None:
    """Refuse options that contradict each other, or would have no effect. Raises InputError."""
    if asked.reader == "transformer-lens" and asked.attn_implementation not in (None, "eager"):
        raise InputError(
            f"TransformerLens computes attention eagerly, but --attn-implementation is {asked.attn_implementation}; "
            "leave that out."
        )
    if asked.reader == "transformer-lens" and folder.is_adapter(asked.checkpoint.folder):
        raise InputError(
            f"TransformerLens can't read adapters, but {asked.model} holds one. Leave out --reader, or merge the "
            "adapter into its base model."
        )
    if not asked.remote:
        return
    if asked.lens is not None:
        raise InputError("--lens is a file here, but with --remote the hidden states stay there; give one of them.")
    if asked.reader != "nnsight":
        raise InputError(f"--remote measures through nnsight, but --reader is {asked.reader}; give --reader nnsight.")
    if asked.rollouts is None:
        raise InputError(
            "--remote measures responses that are there; give them as --rollouts, such as what `internal-policy "
            "generate` or another program wrote."
        )
    for name in ("dtype", "device", "device_map"):
        if getattr(asked, name) != getattr(type(asked), name):
            raise InputError(f"--{name.replace('_', '-')} is the server's own with --remote; leave it out.")
    if asked.checkpoint.folder.is_dir():
        raise InputError(f"NDIF has models of the hub, but --model is the folder {asked.model}; give a hub id.")


def check_there(asked: "Scan") -> None:
    """Refuse, before any work, a library that is not installed, and NDIF without a key. Raises InputError."""
    package = PACKAGES.get(asked.reader)
    if package and find_spec(package) is None:
        raise InputError(
            f"--reader {asked.reader} takes a package that is not here; pip install 'internal-policy[{asked.reader}]'."
        )
    if asked.remote:
        from internal_policy.readers.nnsight import check_key

        check_key()


def opened(asked: "Scan", tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig") -> "Reader":
    """The model, in what reads it. Raises InputError, also for a family that the library does not read."""
    from internal_policy.models.families import inside
    from internal_policy.scans.reader import reader_of

    if asked.remote:
        return _remote(asked, tokenizer, config)
    model = loading.load_model(asked.checkpoint, config, **asked.arguments)
    if asked.reader == "transformer-lens":
        from internal_policy.readers.transformer_lens import boot

        return reader_of(boot(inside(model), tokenizer))
    if asked.reader == "nnsight":
        import nnsight

        return reader_of(nnsight.NNsight(inside(model)))
    return reader_of(model)


def _remote(asked: "Scan", tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig") -> "Reader":
    import nnsight

    from internal_policy.readers.nnsight import boot, remote

    nnsight.CONFIG.APP.REMOTE_LOGGING = False  # it would stand between the lines of --json
    chosen = {"attn_implementation": asked.attn_implementation} if asked.attn_implementation else {}
    trusted = {"trust_remote_code": True} if asked.trust_remote_code else {}
    with explained(asked.model, asked.revision):
        envoy = boot(asked.model, config, tokenizer, asked.revision, **chosen, **trusted)
        envoy.to_model_key()  # asks the hub
    return remote(envoy)


def facts(asked: "Scan") -> dict[str, Any]:
    """What the record says besides of a model that our own hooks do not read."""
    if asked.reader == "hooks":
        return {}
    if not asked.remote:
        return {"reader": asked.reader}
    import nnsight

    return {"reader": asked.reader, "dtype": "the server's", "device": nnsight.CONFIG.API.HOST}
