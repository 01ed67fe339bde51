"""Two tiny chat models with random weights, one like Qwen 3 and one like Llama 3, and their tokenizers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.05,  # with the usual 0.02, attention in heads this narrow takes long to learn
}
WORD = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"  # each digit is a token, and a word keeps the space before it
QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """The differences between the two families of chat models."""

    model: type[PreTrainedModel]
    config: type[Qwen3Config] | type[LlamaConfig]
    tied: bool
    """Whether the unembedding is tied to the embedding."""
    bos: str | None
    eos: str
    """The end-of-turn token."""
    pad: str
    others: tuple[str, ...]
    """Its other special tokens."""
    chat_template: str


FAMILIES = {
    "qwen3": Family(
        model=Qwen3ForCausalLM,
        config=Qwen3Config,
        tied=True,
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        others=("<|im_start|>",),
        chat_template=QWEN_TEMPLATE,
    ),
    "llama": Family(
        model=LlamaForCausalLM,
        config=LlamaConfig,
        tied=False,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        others=("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        chat_template=LLAMA_TEMPLATE,
    ),
}


def make_tokenizer(family: Family, corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 500 tokens, learned from `corpus`."""
    tokenizer = Tokenizer(BPE())
    split = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*filter(None, (family.bos, family.pad, family.eos)), *family.others],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if family.bos:
        bos = (family.bos, tokenizer.token_to_id(family.bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        additional_special_tokens=list(family.others),
        chat_template=family.chat_template,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=SIZE["max_position_embeddings"],
    )


def make_model(family: Family, tokenizer: PreTrainedTokenizerFast, **size: Any) -> PreTrainedModel:
    """A model with random weights and a vocabulary slightly larger than the tokenizer's, as in published models.

    `size` holds fields of its configuration other than those of SIZE.
    """
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vocab_size = 64 * (len(tokenizer) // 64 + 1)
    model = family.model(
        family.config(vocab_size=vocab_size, tie_word_embeddings=family.tied, **{**SIZE, **size}, **ids)
    )
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **ids)
    return model
