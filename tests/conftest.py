"""Tiny random models, one per family, and a small tokenizer; every test is a shape test (jaxtyping + beartype)."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from jaxtyping import install_import_hook

install_import_hook("internal_policy", "beartype.beartype")

import pytest
import torch
from hypothesis import settings
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

settings.register_profile("tests", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("tests")

TINY = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
CORPUS = [
    "Mia has 47 apples and buys 385 more. How many apples has she now?",
    "The assistant adds the units first: 7 + 5 = 12, so write 2 and carry 1. The answer is \\boxed{432}.",
    "An ocean of naïve café tokens, 数学, and emoji 🙂 to fill the vocabulary with pieces of words.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(family: str, **changes) -> PreTrainedModel:
    """A random model of `family` in float64 whose entropies vary from layer to layer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**TINY, "tie_word_embeddings": False, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    for parameter in model.parameters():  # the default initialisation is so small that every policy is uniform
        parameter.data.normal_(0, 0.3) if parameter.dim() > 1 else parameter.data.uniform_(0.5, 1.5)
    return model.eval()


FAMILY_NAMES = ["llama", "mistral", "qwen2", "qwen3"]


@pytest.fixture(params=FAMILY_NAMES)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> PreTrainedModel:
    return tiny_model(family)


def read(model, points, input_ids) -> dict:
    """The hidden states at `points`, each as it was reached."""
    from internal_policy.hooks import hooked

    seen = {}
    with hooked(model, points, seen.__setitem__):
        model(input_ids)
    return seen


def all_points(model) -> list:
    """Every hook point of a model, in the order of a forward pass."""
    from internal_policy.hooks import FINAL, SITES, HookPoint

    return [*(HookPoint(layer, site) for layer in range(model.config.num_hidden_layers) for site in SITES), FINAL]


def hook_count(model) -> int:
    """How many hooks the modules of a model carry."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(5, 256, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 tokens, smaller than the tiny models' vocabulary, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast
