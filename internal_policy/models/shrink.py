"""Shrink a model's configuration until it runs in a moment, with every feature that its layers have."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY, POSITIONS, WINDOW, WIDTH, HEAD, STATE = 320, 512, 6, 16, 8, 8
"""Tokens, positions, tokens that local attention sees, and the smallest width, head and state."""
LARGE = 256
"""Wider streams are made narrower."""
RANDOM_IDS = 256
"""Special tokens are moved above this number, where the random texts of the proofs have none."""

HEADS = r"(?!encoder_hash).*heads|n_head|num_query_groups|(mamba_)?n_groups|o_groups|num_attention_heads_per_layer"
"""Attributes that count heads, or groups of heads."""
HEAD_DIMS = r".*head_?dim|.*(d_head|head_size|dim_head)|kv_channels|rotary_dim|d_kv"
"""Attributes that are the width of a head, or part of it."""
ATTENTION_DIMS = r"(attention_|qk_\w+_)?head_dim|kv_channels|d_kv|dim_head|attention_head_size"
"""Those that are the width of a head of attention."""
WIDTHS = (
    r".*(hidden_size|intermediate_size|feed_forward_size|ffn_dim|lora_rank|_rank|lowrank|embed_dim|embedding_dim)"
    r"|.*(embedding_size|emb_dim|proj_dim|d_ssm|shared_expert_size|hidden_size_per_layer_input|intermediate_size_mlp)"
    r"|d_model|n_embd|n_inner|d_ff|dff|dim_ff|d_inner|lru_width|dim_model_base|d_rel"
)
"""Attributes that are widths of the stream or of what a module computes."""
COUNTS: Mapping[str, int] = {
    r".*vocab_size(_base|_per_layer_input)?|encoder_hash_byte_group_vocab|num_buckets|num_centroids": VOCABULARY,
    r"(attention_)?(sliding_)?window(_size|_len)?|.*attention_chunk_size|local_attention.*|keep_window_size": WINDOW,
    r"index_topk|rel_extent|attention_window_size": WINDOW,
    r"floor_scale|index_block_size|.*(?<!attention_)chunk_size|chunk_length|index_topk_blocks": 4,
    r".*(state_size|d_state)": STATE,
    r"base_channels": 32,
    r"n_group|num_expert_group": 2,
    r"topk_group": 1,
    r".*(experts_per_tok|experts_per_token|topk|top_k|moe_k|top_k_experts)|zero_expert_num": 2,
    r".*shared_experts": 1,
    r".*layer_period": 3,
    r".*(_interval|_freq|sparse_step|moe_layer_step|every_n_layers|layers_per_attn_res_block)": 2,
    r".*window_pattern|layer_group_size": 2,
    r"num_mem_blocks|num_nextn_predict_layers|num_mtp_layers|.*mtp.*layers|split_ngram_parts|heads_per_ngram": 2,
}
"""Attribute -> its largest number in a tiny model."""
EXPERTS = r".*(num|n_routed|num_local)_experts"
FIRST = r"first_k_dense_replace|n(um)?_dense_layers|max_window_layers|moe_layer_start_index|.*first_k_dense.*"
"""Attributes that say how many of the first layers are of another kind."""
LAST = r"num_kv_shared_layers"
"""Attributes that say how many of the last layers are of another kind."""
INDICES = r".*(idxs|indices|layer_ids|_layers|layers_idx)"
"""Attributes that list the numbers of some layers."""
LAYERS = r"num_hidden_layers|n_layers?|num_layers|num_blocks|(num_)?(encoder|decoder)_layers|num_layers_per_stack"
"""Attributes that count layers."""
STANDARD = ("num_hidden_layers", "hidden_size", "num_attention_heads", "partial_rotary_factor")
"""Names that transformers gives to attributes whatever a class calls them."""
LENGTHS = r"(max|n)_.*positions?(_embeddings)?|n_positions|n_ctx|max_seq_len|context_length|model_max_length"
"""Attributes that are lengths of texts."""
DROPPED = ("quantization_config", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
"""Attributes that don't describe the layers."""


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """A configuration of the same class, of a model that runs in a moment and has all kinds of layers of the given one.

    Widths and heads are divided by common factors, which keeps relations such as width = heads x head width. Numbers
    of layers, experts, positions and tokens are cut; some of the few layers are of each kind, in the same order. A
    small configuration stays as it is. The class may raise anything if the result isn't valid.
    """
    values = {name: value for name, value in config.to_dict().items() if name not in DROPPED}
    nested = {
        name: part for name in config.sub_configs if isinstance(part := getattr(config, name, None), PreTrainedConfig)
    }
    standard = {name: values.get(config.attribute_map.get(name, name)) for name in STANDARD}
    kept = _layers(standard["num_hidden_layers"], values)
    heads, head = _factors(standard, values)
    values = {name: _cut(values, name, value, kept) for name, value in values.items() if name not in nested}
    values = {name: _divided(name, value, heads, head) for name, value in values.items()}
    values |= {name: shrunk(part) for name, part in nested.items()}
    return type(config)(**_with_tokens(_with_positions(values)))


def _layers(n_layers: Any, values: Mapping[str, Any]) -> list[int]:
    """The numbers of the layers that stay: one of each kind, and at least 3."""
    if not isinstance(n_layers, int):
        return [0, 1, 2]
    kinds: dict[tuple[Any, ...], int] = {}
    for layer in range(n_layers):
        kinds.setdefault(tuple(_kind(name, value, layer, n_layers) for name, value in values.items()), layer)
    more = [layer for layer in (0, n_layers - 1, *range(1, n_layers)) if layer not in kinds.values()]
    least = 4 if any(re.fullmatch(r".*(period|interval|freq|step|pattern)", name) for name in values) else 3
    return sorted({*kinds.values(), *more[: max(0, least - len(kinds))]})


def _kind(name: str, value: Any, layer: int, n_layers: int) -> Any:
    """What an attribute says about one layer."""
    if name == "per_layer_config":
        return repr(next((each for number, each in value.items() if int(number) == layer), None))
    if _of_layers(name, value, n_layers):
        return repr(value[layer])
    if _numbers_of_layers(name, value, n_layers):
        return layer in value
    if isinstance(value, int) and re.fullmatch(FIRST, name):
        return layer < value
    if isinstance(value, int) and re.fullmatch(LAST, name):
        return layer >= n_layers - value
    return None


def _of_layers(name: str, value: Any, n_layers: int) -> bool:
    """Whether an attribute lists something about each layer."""
    return isinstance(value, list) and len(value) == n_layers and not _numbers_of_layers(name, value, n_layers)


def _numbers_of_layers(name: str, value: Any, n_layers: int) -> bool:
    """Whether an attribute lists the numbers of some layers."""
    if not isinstance(value, list) or not value or not re.fullmatch(INDICES, name):
        return False
    return all(type(each) is int and each < n_layers for each in value) and value == sorted(set(value))


def _cut(values: Mapping[str, Any], name: str, value: Any, kept: Sequence[int]) -> Any:
    """An attribute after layers, experts, tokens and windows were cut."""
    n_layers = next((n for each, n in values.items() if re.fullmatch(LAYERS, each) and isinstance(n, int)), 0)
    if name == "per_layer_config":
        each = {int(layer): changes for layer, changes in value.items()}
        return {number: each[layer] for number, layer in enumerate(kept) if layer in each}
    if name == "attention_types":  # of GPT-Neo: kinds of layers and how often they repeat
        return [[[values["attention_layers"][layer] for layer in kept], 1]]
    if _of_layers(name, value, n_layers):
        return [value[layer] for layer in kept]
    if _numbers_of_layers(name, value, n_layers):
        return [number for number, layer in enumerate(kept) if layer in value]
    if isinstance(value, list) and _ints(value):
        return [_cut(values, name, each, kept) for each in value]
    if type(value) is not int or value < 1:
        return value
    if re.fullmatch(LAYERS, name):
        return min(value, len(kept))
    if re.fullmatch(FIRST, name):
        return sum(layer < value for layer in kept)
    if re.fullmatch(LAST, name):
        return sum(layer >= n_layers - value for layer in kept)
    if name.endswith("_layer_offset"):
        return value % min(3, values[name.replace("_offset", "_period")])
    if re.fullmatch(EXPERTS, name):
        return min(value, 8 if values.get("n_group", values.get("num_expert_group", 1)) not in (None, 1) else 4)
    return min([value, *(most for pattern, most in COUNTS.items() if re.fullmatch(pattern, name))])


def _factors(standard: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[int, int]:
    """What numbers of heads and widths of heads are divided by; other widths are divided by both."""
    width = standard["hidden_size"]
    if not isinstance(width, int) or width <= LARGE:
        return 1, 1
    counts = [n for n in _numbers(values, HEADS) if n > 1]
    sizes = [n for n in _numbers(values, HEAD_DIMS) if n > 1]
    n_heads = standard["num_attention_heads"] or max(counts, default=0)
    if n_heads and not _numbers(values, ATTENTION_DIMS):  # heads divide the stream among them if nothing else is given
        sizes.append(max(1, width // n_heads))
    if not sizes:
        return 1, max(1, width // (2 * WIDTH))
    shared = _divisors(math.gcd(*sizes, *_parts(standard, values, sizes[0])))
    head = max(each for each in shared if each == 1 or (max(sizes) // each >= HEAD and min(sizes) // each >= 2))
    some = _divisors(math.gcd(*counts)) if counts else [1]
    least = 2 if min(counts, default=0) < max(counts, default=0) else 4
    heads = max(each for each in some if each == 1 or min(counts) // each >= least)
    if width // (heads * head) > LARGE:
        heads = max(some)
    heads = max([each for each in some if each <= heads and width // (each * head) >= WIDTH], default=1)
    return heads, max(each for each in shared if each <= head and (each == 1 or width // (heads * each) >= WIDTH))


def _numbers(values: Mapping[str, Any], pattern: str) -> list[int]:
    """The positive integers among attributes with such names, also in lists of one per layer."""
    found: list[Any] = [value for name, value in values.items() if re.fullmatch(pattern, name)]
    found += [_numbers(changes, pattern) for changes in (values.get("per_layer_config") or {}).values()]
    flat = [each for value in found for each in (value if isinstance(value, list) else [value])]
    return [each for each in flat if type(each) is int and each > 0]


def _parts(standard: Mapping[str, Any], values: Mapping[str, Any], size: int) -> Iterable[int]:
    """Parts of a head that rotary embeddings treat differently; each must stay a whole number of pairs."""
    ropes = values.get("rope_parameters") or {}
    for rope in [ropes, *ropes.values()]:
        if isinstance(rope, Mapping):
            share = rope.get("partial_rotary_factor") or standard["partial_rotary_factor"]
            if share:
                yield max(1, round(size * share) // 2)
            yield from (each for each in rope.get("mrope_section") or [] if each)
            yield from (len(rope[name]) for name in ("short_factor", "long_factor") if rope.get(name))


def _ints(values: list[Any]) -> bool:
    return all(type(each) is int for each in values)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _divided(name: str, value: Any, heads: int, head: int) -> Any:
    """An attribute after heads and widths were divided."""
    if isinstance(value, list):
        return [_divided(name, each, heads, head) for each in value] if _ints(value) else value
    if name == "per_layer_config":
        return {n: {key: _divided(key, each, heads, head) for key, each in part.items()} for n, part in value.items()}
    if name == "rope_parameters" and isinstance(value, Mapping):
        return {key: _rope(key, each, head) for key, each in value.items()}
    if type(value) is not int or value < 2:
        return value
    for pattern, factor in ((HEADS, heads), (HEAD_DIMS, head), (WIDTHS, heads * head)):
        if re.fullmatch(pattern, name):
            return max(1, -(-value // factor))
    return value


def _rope(name: str, value: Any, head: int) -> Any:
    """A parameter of rotary embeddings for narrower heads."""
    if isinstance(value, Mapping):
        return {key: _rope(key, each, head) for key, each in value.items()}
    if name == "mrope_section":
        return [each // head for each in value]
    return value[: len(value) // head] if name in ("short_factor", "long_factor") and value else value


def _with_positions(values: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes with fewer positions; the lengths before and after an extension keep their ratio."""
    factor = max([1, *(n // POSITIONS for n in _numbers(values, LENGTHS))])
    cut = {name: _shorter(name, value, factor) for name, value in values.items()}
    if ropes := values.get("rope_parameters"):
        each = {
            kind: isinstance(rope, Mapping) for kind, rope in ropes.items()
        }  # one for each kind of layer, or just one
        cut["rope_parameters"] = {
            kind: {name: _shorter(name, value, factor) for name, value in rope.items()}
            if each[kind]
            else _shorter(kind, rope, factor)
            for kind, rope in cut["rope_parameters"].items()
        }
    return cut


def _shorter(name: str, value: Any, factor: int) -> Any:
    """An attribute that is a length in positions, divided by a factor; others are unchanged."""
    if type(value) is int and re.fullmatch(rf"{LENGTHS}|original_max_position_embeddings", name):
        return max(1, value // factor)
    return value


def _with_tokens(values: dict[str, Any]) -> dict[str, Any]:
    """The attributes with special tokens inside the vocabulary, at its end, where the proofs' texts don't use them."""
    moved: dict[int, int] = {}

    def inside(value: Any) -> Any:
        if isinstance(value, list):
            return [inside(each) for each in value]
        if type(value) is not int or value < 5 or RANDOM_IDS <= value < VOCABULARY - 40:
            return value
        return moved.setdefault(value, VOCABULARY - 1 - len(moved))

    special = r".*(_token_id|_token_index|_tokens)"
    return {name: inside(value) if re.fullmatch(special, name) else value for name, value in values.items()}
