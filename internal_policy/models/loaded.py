"""A model with its tokenizer, as `ip.load` returns them."""

import sys
from typing import TYPE_CHECKING, NamedTuple

from internal_policy.errors import counted
from internal_policy.jupyter import notebook
from internal_policy.jupyter.notebook import printable
from internal_policy.models import quantized

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class Loaded(NamedTuple):
    """A model and its tokenizer, as in `model, tokenizer = ip.load("demo-qwen3")`. The pair shows what was loaded."""

    model: "nn.Module"
    """The Hugging Face model, or a PeftModel around it."""
    tokenizer: "PreTrainedTokenizerBase"

    def facts(self) -> dict[str, str]:
        """Name, type, size, weights, device, longest text, sites that can be read, and chat template, in words."""
        from internal_policy.models.adapters import inside
        from internal_policy.models.families import sites_of
        from internal_policy.models.naming import title
        from internal_policy.models.passes import device_of, positions

        model = inside(self.model)
        config, text = model.config, model.config.get_text_config()
        longest, quantization = positions(config), quantized.quantization(model)
        return {
            "model": title(config.name_or_path or config.model_type),
            "type": config.model_type,
            "layers": str(text.num_hidden_layers),
            "width": f"{text.hidden_size:,}",
            "vocabulary": counted(text.vocab_size, "token"),
            "parameters": f"{model.num_parameters():,}",
            "weights": str(model.dtype).removeprefix("torch.") if quantization is None else str(quantization),
            "device": str(device_of(model)),
            "longest text": "no limit" if longest == sys.maxsize else counted(longest, "token"),
            "sites": ", ".join(sites_of(config)),
            "chat template": "yes" if self.tokenizer.chat_template else "no, so pass chat=None",
        }

    def __repr__(self) -> str:
        """The model's name and size."""
        found = self.facts()
        size = f"{counted(int(found['layers']), 'layer')}, {found['parameters']} parameters"
        return f"<{printable(found['model'])}: {found['type']}, {size}, {found['weights']} on {found['device']}>"

    def _repr_html_(self) -> str:
        """The facts, for a notebook."""
        return notebook.page(lambda: notebook.facts(self.facts()))
