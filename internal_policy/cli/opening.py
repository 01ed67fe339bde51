"""Load the model of a scan in its reader: our hooks, TransformerLens, nnsight or NDIF."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from internal_policy.cli.prepared import Prepared, check_effect
from internal_policy.errors import InputError, require
from internal_policy.models.failures import explained
from internal_policy.models.folder import is_adapter

if TYPE_CHECKING:
    from internal_policy.scans.reader import Reader

PACKAGES = {"transformer-lens": "transformer_lens", "nnsight": "nnsight"}
"""--reader -> the package that it needs, which the extra of the same name installs."""


def check(options: Any) -> None:
    """Refuse options of a scan that its reader can't use. Raises InputError."""
    if options.reader == "transformer-lens" and options.attn_implementation not in (None, "eager"):
        raise InputError(
            f"TransformerLens computes attention eagerly, but --attn-implementation is {options.attn_implementation}. "
            "Leave that out."
        )
    if options.reader == "transformer-lens" and is_adapter(options.checkpoint.folder):
        raise InputError(
            f"TransformerLens can't read adapters, but {options.model} is one. Leave out --reader, or merge the "
            "adapter into its base model."
        )
    if not options.remote:
        return
    if options.lens:
        raise InputError("--lens can't be used with --remote, where hidden states stay on the server. Leave one out.")
    if options.controls:
        raise InputError("--controls needs hidden states, but with --remote they stay on the server. Leave one out.")
    if options.reader != "nnsight":
        raise InputError(f"--remote measures through nnsight, but --reader is {options.reader}. Add --reader nnsight.")
    if not options.rollouts and not options.text:
        raise InputError(
            "--remote measures existing responses. Give them with --rollouts, such as a file that `internal-policy "
            "generate` wrote."
        )
    local = {"dtype", "device", "device_map", "max_memory", "offload_folder", "gguf_file", "quantize"}
    check_effect(options, local, "--remote")
    if options.checkpoint.folder.is_dir():
        raise InputError(f"NDIF hosts models from the hub, but --model is the folder {options.model}. Give a hub id.")


@dataclass(frozen=True)
class Opener:
    """A reader of models: our own hooks, or a library."""

    reader: str
    """`hooks`, or a key of PACKAGES."""
    remote: bool
    """Whether nnsight measures on NDIF."""
    engine: str = "local"
    """The engine that samples the responses."""

    @property
    def packages(self) -> list[str]:
        """Packages whose versions can change the numbers."""
        engines = ["vllm"] if self.engine == "vllm" and find_spec("vllm") else []
        return [*([self.reader] if self.reader in PACKAGES else []), *engines]

    @property
    def facts(self) -> dict[str, Any]:
        """Additional fields of the record, if a library reads the model."""
        if self.reader == "hooks":
            return {}
        if not self.remote:
            return {"reader": self.reader}
        import nnsight

        return {"reader": self.reader, "dtype": "the server's", "device": nnsight.CONFIG.API.HOST}

    def check(self) -> None:
        """Raise InputError if the library isn't installed, or if there is no key for NDIF."""
        if self.reader in PACKAGES:
            require(self.reader, PACKAGES[self.reader])
        if self.remote:
            from internal_policy.readers.nnsight import check_key

            check_key()

    def open(self, inputs: Prepared) -> "Reader":
        """Load the model in its reader. Raises InputError, also for a family that the library doesn't read."""
        from internal_policy.models.adapters import inside
        from internal_policy.scans.reader import reader_of

        if self.remote:
            return _remote(inputs)
        model: Any = inputs.model()
        if self.reader == "transformer-lens":
            from internal_policy.readers.transformer_lens import boot

            model = boot(inside(model), inputs.tokenizer)
        if self.reader == "nnsight":
            import nnsight

            model = nnsight.NNsight(inside(model))
        return reader_of(model)


def _remote(inputs: Prepared) -> "Reader":
    import nnsight

    from internal_policy.readers.nnsight import boot, remote

    nnsight.CONFIG.APP.REMOTE_LOGGING = False  # it would print between the lines of --json
    checkpoint, attention = inputs.checkpoint, inputs.arguments["attn_implementation"]
    chosen = {"attn_implementation": attention} if attention else {}
    trusted = {"trust_remote_code": True} if checkpoint.trust_remote_code else {}
    with explained(checkpoint.name, checkpoint.revision):
        envoy = boot(checkpoint.name, inputs.config, inputs.tokenizer, checkpoint.revision, **chosen, **trusted)
        envoy.to_model_key()  # asks the hub
    return remote(envoy)
