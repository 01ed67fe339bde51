"""The paper's models at their true sizes, on the meta device, and the prompts of R1-Distill and OctoThinker."""

import json
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import all_points, read, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from internal_policy.errors import InputError
from internal_policy.measure.metrics import entropy
from internal_policy.measure.sites import SITES
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.families import family_of
from internal_policy.models.head import unembedding
from internal_policy.models.hooks import FINAL, HookPoint, locate
from internal_policy.models.modules import decoder_layers, final_norm
from internal_policy.models.policy import as_policy, unembed
from internal_policy.models.rows import FAMILIES
from internal_policy.models.tokenizers import load_tokenizer
from internal_policy.scans.scan import scan
from internal_policy.scans.selection import Selection, parse_layers, plan
from internal_policy.tasks.generate import generate
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import encode_problem, split_messages
from internal_policy.tasks.rollouts import Rollout, read_rollouts, write_rollouts


@dataclass(frozen=True)
class Size:
    """The values in a checkpoint's config.json, under their names there; all have heads of size 128."""

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    """Rows of the unembedding, padding included."""
    tie_word_embeddings: bool
    max_position_embeddings: int
    head_dim: int = 128


@dataclass(frozen=True)
class Published:
    """A model of the paper (its Table 4)."""

    size: Size
    billions: float
    """Number of parameters, as its checkpoint counts them."""
    rope: tuple[float, float | None]
    """Base of the rotary embedding, and the factor by which Llama 3 stretches it."""


QWEN3_4B = Size("qwen3", 36, 2560, 9728, 32, 8, 151936, True, 40960)
QWEN3_8B = Size("qwen3", 36, 4096, 12288, 32, 8, 151936, False, 40960)
QWEN3_14B = Size("qwen3", 40, 5120, 17408, 40, 8, 151936, False, 40960)
QWEN2_7B = Size("qwen2", 28, 3584, 18944, 28, 4, 152064, False, 4096)
LLAMA_3B = Size("llama", 28, 3072, 8192, 24, 8, 128256, True, 131072)
LLAMA_8B = Size("llama", 32, 4096, 14336, 32, 8, 128256, False, 131072)
DEEPSEEK_7B = Size("llama", 30, 4096, 11008, 32, 32, 102400, False, 4096)

PAPER = {
    "Qwen/Qwen3-4B": Published(QWEN3_4B, 4.02, (1e6, None)),
    "Qwen/Qwen3-8B": Published(QWEN3_8B, 8.19, (1e6, None)),
    "Qwen/Qwen3-14B": Published(QWEN3_14B, 14.77, (1e6, None)),
    "Qwen/Qwen3-4B-Base": Published(replace(QWEN3_4B, max_position_embeddings=32768), 4.02, (1e6, None)),
    "Qwen/Qwen3-4B-Instruct-2507": Published(replace(QWEN3_4B, max_position_embeddings=262144), 4.02, (5e6, None)),
    "Qwen/Qwen2.5-Math-7B": Published(QWEN2_7B, 7.62, (1e4, None)),
    "meta-llama/Llama-3.2-3B-Instruct": Published(LLAMA_3B, 3.21, (5e5, 32.0)),
    "meta-llama/Llama-3.1-8B-Instruct": Published(LLAMA_8B, 8.03, (5e5, 8.0)),
    # OctoThinker continues training Llama's base models, and has their sizes
    "OctoThinker/OctoThinker-3B-Long-Base": Published(LLAMA_3B, 3.21, (5e5, 32.0)),
    "OctoThinker/OctoThinker-8B-Long-Base": Published(LLAMA_8B, 8.03, (5e5, 8.0)),
    "deepseek-ai/deepseek-math-7b-base": Published(DEEPSEEK_7B, 6.91, (1e4, None)),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": Published(
        replace(QWEN2_7B, max_position_embeddings=131072), 7.62, (1e4, None)
    ),
}


def built(name: str) -> PreTrainedModel:
    """The model at its true size, without memory for its weights."""
    theta, factor = PAPER[name].rope
    rope = {"rope_type": "default", "rope_theta": theta}
    if factor:
        bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        rope |= {"rope_type": "llama3", "factor": factor, **bounds}
    config = AutoConfig.for_model(**asdict(PAPER[name].size), rope_parameters=rope, name_or_path=name)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module", params=PAPER)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> PreTrainedModel:
    return built(name)


@pytest.fixture(scope="module")
def deep() -> PreTrainedModel:
    """The model with 40 layers, the most that the paper's code supports."""
    return built("Qwen/Qwen3-14B")


IDS = torch.zeros(1, 7, dtype=torch.int64, device="meta")


# modules


def test_parameter_counts_match_the_published_ones(model, name):
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e9, 2) == PAPER[name].billions


def test_the_row_depends_on_the_model_type_and_not_on_the_name(model, name):
    assert model.name_or_path == name
    assert family_of(model.config) is FAMILIES[PAPER[name].size.model_type]


def test_all_layers_are_found(model, name):
    n = PAPER[name].size.num_hidden_layers
    assert list(decoder_layers(model)) == [model.get_submodule(f"model.layers.{layer}") for layer in range(n)]


def test_every_hook_point_of_a_layer_is_a_module_of_that_layer(model):
    name_of = {module: f"{name}." for name, module in model.named_modules()}
    points = [point for point in all_points(model) if point != FINAL]
    found = [locate(model, point) for point in points]
    assert all(name_of[at].startswith(f"model.layers.{p.layer}.") for p, ([at], _) in zip(points, found, strict=True))
    assert len({(at, side) for [at], side in found}) == len(SITES) * len(decoder_layers(model))


def test_final_is_after_the_final_norm(model):
    assert locate(model, FINAL) == ([final_norm(model)], "output")
    assert final_norm(model) is model.get_submodule("model.norm")


def test_the_unembedding_has_a_row_for_every_token_and_the_padding(model, name):
    size = PAPER[name].size
    assert unembedding(model).weight.shape == (size.vocab_size, size.hidden_size)


def test_a_tied_unembedding_is_the_embedding(model, name):
    assert (unembedding(model).weight is model.get_input_embeddings().weight) == PAPER[name].size.tie_word_embeddings


def test_a_layer_after_the_last_is_rejected(model):
    n = len(decoder_layers(model))
    with pytest.raises(InputError, match=rf"no hook point {n}\.resid_post: the model's layers are 0 to {n - 1}\."):
        locate(model, HookPoint(n, "resid_post"))


def test_a_pass_reaches_every_point_in_order(model):
    states = read(model, all_points(model), IDS)
    assert list(states) == all_points(model)
    assert {hidden.shape for hidden in states.values()} == {(1, 7, model.config.hidden_size)}


# 40 layers


def test_each_of_40_layers_is_a_policy_and_the_checkpoint_is_unchanged(deep):
    names = list(deep.state_dict())
    for layer in range(40):
        with as_policy(deep, HookPoint(layer, "resid_post")):
            assert set(deep.state_dict()) == {
                name for name in names if "layers." not in name or int(name.split(".")[2]) <= layer
            }
        assert list(deep.state_dict()) == names


@pytest.mark.parametrize("layer", [0, 9, 10, 39])
def test_a_policy_with_40_layers_has_a_logit_for_every_token(deep, layer):
    with as_policy(deep, HookPoint(layer, "resid_post")):
        assert deep(IDS).logits.shape == (1, 7, 151936)


@pytest.mark.parametrize(
    ("text", "layers"), [("-1", (39,)), ("-40", (0,)), ("9-11", (9, 10, 11)), ("39,4,30-31", (4, 30, 31, 39))]
)
def test_any_of_40_layers_can_be_selected(text, layers):
    assert parse_layers(text, 40) == layers


def test_a_41st_of_40_layers_is_rejected():
    with pytest.raises(InputError, match=r"--layers has 40, but the model's layers are 0 to 39\."):
        parse_layers("40", 40)


def test_a_pass_reaches_every_planned_point_of_40_layers(deep):
    points = plan(Selection(parse_layers("all", 40))).points
    assert set(read(deep, points, IDS)) == set(points)


def test_each_of_40_layers_is_scanned_under_its_own_number(tokenizer, input_ids):
    model = tiny_model("qwen3", num_hidden_layers=40)
    ids = input_ids[:1]
    rollout = Rollout("", None, 0, tuple(ids[0, :4].tolist()), tuple(ids[0, 4:].tolist()), "", None, True)
    policies = scan(model, tokenizer, [rollout], sites=["resid_post"], readouts=["raw"], measures=["entropy"]).policies
    points = [*(HookPoint(layer, "resid_post") for layer in range(40)), FINAL]
    states = torch.cat(list(read(model, points, ids).values()))[:, 3:-1]  # token t is predicted at position t - 1
    expected = pd.DataFrame(entropy(unembed(model, states)).detach().numpy()).stack()
    found = policies.pivot(index="layer", columns="position", values=["resid_post.entropy", "final.entropy"])
    assert list(found.index) == list(range(41))  # the model's own policy comes after the last layer
    found = found["resid_post.entropy"].fillna(found["final.entropy"]).stack()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# R1-Distill: tags in full-width characters, and reasoning that the prompt opens and earlier turns lose

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
R1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
UNOPENED = R1.replace("<think>\n{%", "{%")
KEEPS = R1.replace("{{ m.content.split('</think>')[-1] }}", "<think>\n{{ m.content }}")
REASONED = "3 and 4 more: 7</think>\n\nIt is \\boxed{7}."
ASKED = ["What is 3 + 4?", "Be my assistant", "<｜Assistant｜><think>\n9", "Why </think>?", EOS + "<｜Assistant｜>"]


def problem(text: str) -> Problem:
    return Problem((Message(role="user", content=text),), "7")


def answered(text: str, response: str = REASONED) -> list[Message]:
    return [*problem(text).messages, Message(role="assistant", content=response)]


def tagged(tokenizer, chat_template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that adds a BOS; as in R1-Distill, the tags are separate tokens and not special."""
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), bos_token=BOS, eos_token=EOS
    )
    plain.add_tokens(["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"])
    plain.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, plain.bos_token_id)]
    )
    plain.chat_template = chat_template
    return plain


@pytest.fixture(scope="module")
def r1(tokenizer) -> PreTrainedTokenizerFast:
    return tagged(tokenizer, R1)


@pytest.mark.parametrize("asked", ASKED)
def test_the_prompt_ends_with_an_open_think_tag(r1, asked):
    ids = encode_problem(r1, problem(asked), {})
    assert r1.decode(ids) == f"{BOS}<｜User｜>{asked}<｜Assistant｜><think>\n"
    assert ids.count(r1.bos_token_id) == 1


def test_the_prompt_leaves_out_the_reasoning_of_earlier_turns(r1):
    turns = (*answered("What is 3 + 4?"), *problem("Are you sure?").messages)
    assert r1.decode(encode_problem(r1, Problem(turns, None), {})) == (
        f"{BOS}<｜User｜>What is 3 + 4?<｜Assistant｜>\n\nIt is \\boxed{{7}}.{EOS}"
        "<｜User｜>Are you sure?<｜Assistant｜><think>\n"
    )


@pytest.mark.parametrize("response", [REASONED, f"<think>\n{REASONED}", "3 and 4 mo", "It is 7."])
def test_a_response_that_the_template_cuts_or_moves_is_rejected_with_remedies(r1, response):
    with pytest.raises(InputError, match="--chat-template FILE with one that keeps the reasoning, or prompt_ids"):
        split_messages(r1, answered("What is 3 + 4?", response), {})


def test_a_cut_response_is_rejected_without_an_open_think_tag_too(r1):
    with pytest.raises(
        InputError, match=r"instead of '3 and 4 more: 7</think>.*--chat-template FILE with one that keeps"
    ):
        split_messages(r1, answered("What is 3 + 4?"), {"chat_template": UNOPENED})


@pytest.mark.parametrize("asked", ASKED)
def test_reasoning_is_measured_whole_if_the_template_keeps_it(r1, asked):
    prompt_ids, response_ids = split_messages(r1, answered(asked), {"chat_template": KEEPS})
    assert prompt_ids == encode_problem(r1, problem(asked), {})
    assert r1.decode(response_ids) == REASONED + EOS


def test_reasoning_is_measured_whole_without_a_template(r1):
    prompt_ids, response_ids = split_messages(r1, answered("3 + 4 =", f"<think>\n{REASONED}"), None)
    assert r1.decode(prompt_ids + response_ids) == f"{BOS}3 + 4 =<think>\n{REASONED}"


def test_token_ids_are_measured_whole_and_marked_by_the_box_after_the_reasoning(r1, tmp_path):
    prompt_ids = encode_problem(r1, problem("What is 3 + 4?"), {})
    response_ids = r1("\\boxed{8}, or 7</think>\\boxed{7}" + EOS, add_special_tokens=False)["input_ids"]
    path = tmp_path / "ids.jsonl"
    path.write_text(json.dumps({"prompt_ids": prompt_ids, "response_ids": response_ids, "answer": "7"}))
    (read,) = read_rollouts(path, r1, {})
    assert (read.prompt_ids, read.response_ids) == (prompt_ids, tuple(response_ids))
    assert (read.response, read.reward, read.finished) == ("\\boxed{8}, or 7</think>\\boxed{7}", 1.0, True)


def test_texts_that_the_template_cuts_are_rejected_with_their_line(r1, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"prompt": "What is 3 + 4?", "response": REASONED}))
    with pytest.raises(InputError, match=r"texts\.jsonl, line 1: .*keeps the reasoning"):
        read_rollouts(path, r1, {})


def test_a_response_continues_the_open_think_tag_and_is_read_back_unchanged(r1, tmp_path):
    model = tiny_model("qwen2")
    problems = [problem(text) for text in ASKED]
    sampled = list(chain.from_iterable(generate(model, r1, problems, max_new_tokens=5, batch_size=5)))
    assert [rollout.prompt_ids for rollout in sampled] == [encode_problem(r1, asked, {}) for asked in problems]
    write_rollouts(tmp_path / "sampled.jsonl", sampled)
    assert read_rollouts(tmp_path / "sampled.jsonl", r1, {}) == sampled


@pytest.mark.parametrize("template", [R1, UNOPENED, KEEPS])
@given(pieces=st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "7", "assistant", "<｜Assistant｜>", EOS])))
def test_no_response_is_ever_cut_silently(r1, template, pieces):
    response = "".join(pieces)
    try:
        _, ids = split_messages(r1, answered("3 + 4?", response), {"chat_template": template})
    except InputError:
        return
    ended = response.rstrip()  # a response with an end of turn gets no second one
    assert r1.decode(ids) == (ended if ended.endswith(EOS) else response + EOS)


# OctoThinker: a base model, whose tokenizer adds a BOS and has no chat template

BASE_JINJA = str(Path(__file__).parents[2] / "data" / "recipes" / "base.jinja")


@pytest.fixture(scope="module")
def octothinker(tokenizer, tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("octothinker")
    tagged(tokenizer, None).save_pretrained(folder)
    return Checkpoint(str(folder))


def test_a_base_model_without_a_template_is_rejected_with_remedies(octothinker):
    with pytest.raises(InputError, match=r"no chat template\. Use --chat-template FILE to give one, or"):
        encode_problem(load_tokenizer(octothinker), problem("What is 3 + 4?"), {})


def test_with_chat_template_none_the_prompt_is_the_text(octothinker):
    tokenizer = load_tokenizer(octothinker, "none")
    ids = encode_problem(tokenizer, problem("What is 3 + 4?"), None)
    assert tokenizer.decode(list(ids)) == BOS + "What is 3 + 4?"


def test_the_recipes_template_adds_no_second_bos(octothinker):
    tokenizer = load_tokenizer(octothinker, BASE_JINJA)
    ids = encode_problem(tokenizer, problem("What is 3 + 4?"), {})
    assert tokenizer.decode(list(ids)) == BOS + "Question: What is 3 + 4?\nAnswer:"


@pytest.mark.parametrize("response", [" 7", "\n7", "  7 \n", " <think>3, 4</think> 7"])
def test_the_recipes_template_keeps_the_white_space_of_the_response(octothinker, response):
    tokenizer = load_tokenizer(octothinker, BASE_JINJA)
    _, response_ids = split_messages(tokenizer, answered("What is 3 + 4?", response), {})
    assert tokenizer.decode(list(response_ids)) == response + EOS
