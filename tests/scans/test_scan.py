"""A scan agrees with a slow reference: all logits of the whole text, with token t predicted at position t - 1."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.utils import compile_regions
from conftest import FEW, LLAMA_SHAPED, all_points, hook_count, random_rollout, read, slow, tiny_model
from torch.distributions import Categorical

from internal_policy.errors import InputError
from internal_policy.lenses import fit
from internal_policy.measure.metrics import MEASURES, entropy
from internal_policy.measure.sites import SITES
from internal_policy.models.head import logit_transform
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.modules import backbone, decoder_layers, final_norm
from internal_policy.models.policy import as_policy, policy_logits, unembed
from internal_policy.models.rows import FAMILIES
from internal_policy.scans import blocks as blocks_module
from internal_policy.scans import scan as scan_module
from internal_policy.scans.blocks import blocks
from internal_policy.scans.reader import reader_of
from internal_policy.scans.scan import Scanner, scan
from internal_policy.scans.selection import Selection
from internal_policy.train import dynamics

KEYS = ["rollout", "readout", "layer"]
INPUTS = {"attn_out": "attn_in", "mlp_out": "mlp_in", "resid_post": "resid_pre"}
STREAMS = {"attn_out": "resid_pre", "mlp_out": "resid_mid"}
WINDOWS = {
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
}
"""Of those families whose tiny model has none."""
ROUNDING = dict.fromkeys(["gemma2", "vaultgemma", "flint", "gpt_neo", "xglm"], 2e-5)
"""Of families that compute some of their attention in float32, whatever the model is in."""
DELTA_RULE = ("qwen3_next", "qwen3_5", "kimi_linear", "bailing_hybrid", "olmo_hybrid")
"""Start of the names of families whose recurrent states are float32, which tests/models/test_independence.py reads."""


@pytest.fixture
def rollouts():
    """Prompts and responses of very different lengths."""
    return [random_rollout(n, m, seed) for seed, (n, m) in enumerate([(3, 5), (1, 30), (25, 1), (2, 17), (9, 2)])]


def reference(model, one, points, readouts, top_k):
    """(point, readout, every number at every response token), from all logits of the whole text."""
    ids, targets = torch.tensor([one.ids]), torch.tensor(one.response_ids)
    at = slice(len(one.prompt_ids) - 1, len(one.ids) - 1)  # token t is predicted at position t - 1
    states = {place: hidden[0, at] for place, hidden in read(model, all_points(model), ids).items()}
    final = Categorical(logits=policy_logits(model, FINAL, input_ids=ids)[0, at])
    for point, readout in product(points, readouts):
        logits = policy_logits(model, point, readout, input_ids=ids)[0, at]
        policy = Categorical(logits=logits)
        top = policy.probs.topk(top_k)
        numbers = {
            "entropy": policy.entropy(),
            "logprob": policy.log_prob(targets),
            "rank": (logits > logits.gather(-1, targets.unsqueeze(-1))).sum(-1) + 1,
            "topk_ids": top.indices,
            "topk_probs": top.values,
            "norm": states[point].norm(dim=-1),
        }
        if point != FINAL:
            numbers["kl"] = (final.probs * (final.logits - policy.logits)).sum(-1)
        if point.site in STREAMS:
            before = HookPoint(point.layer, "resid_pre")
            stream = states.get(HookPoint(point.layer, STREAMS[point.site]), states[before])  # GPT-NeoX: one stream
            numbers["cosine"] = torch.cosine_similarity(states[point], stream, dim=-1)
        if point.site in INPUTS and readout == "raw":
            scaled = states[HookPoint(point.layer, INPUTS[point.site])].norm(dim=-1) / numbers["norm"]
            at_input_norm = unembed(model, states[point] * scaled.unsqueeze(-1))
            numbers["entropy_at_input_norm"] = Categorical(logits=at_input_norm).entropy()
        yield point, readout, {name: values.detach().numpy() for name, values in numbers.items()}


def column(policies, number, readout, layer, name):
    """One column of one rollout at one layer, by position."""
    rows = policies[(policies["rollout"] == number) & (policies["readout"] == readout) & (policies["layer"] == layer)]
    rows = rows.sort_values("position")
    assert rows["position"].tolist() == list(range(len(rows)))
    return np.stack(rows[name].to_list())


def assert_says_the_reference(policies, model, rollouts, points, readouts=("raw",), top_k=5):
    """Compare every number at `points` up to float32's rounding, and ranks and likeliest tokens exactly."""
    last = model.config.num_hidden_layers
    there = {key: rows.sort_values("position") for key, rows in policies.groupby(KEYS)}
    for number, one in enumerate(rollouts):
        for point, readout, numbers in reference(model, one, points, readouts, top_k):
            rows = there[number, readout, last if point == FINAL else point.layer]
            for name, expected in numbers.items():
                found = np.stack(rows[f"{point.site}.{name}"].to_list())
                tolerance = 0 if name in ("rank", "topk_ids") else 1e-6
                what = f"{number} {point} {name}"
                np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=what)


def assert_same(found, expected, rounding=1e-6):
    """Assert that two scans agree: ranks and likeliest tokens exactly, the rest up to float32's rounding."""
    for one, other in ((found.policies, expected.policies), (found.layers, expected.layers)):
        assert list(one.columns) == list(other.columns)
        for name in one.columns:
            a, b = one[name], other[name]
            assert a.isna().tolist() == b.isna().tolist(), name
            if name.endswith("topk_ids") or not (a.dtype == object or pd.api.types.is_float_dtype(a)):
                assert [np.array(x).tolist() for x in a.dropna()] == [np.array(x).tolist() for x in b.dropna()], name
            elif a.dtype == object and not name.endswith("topk_probs"):
                assert a.dropna().tolist() == b.dropna().tolist(), name
            else:
                stacked = [np.stack(x.dropna().to_list()) for x in (a, b) if x.notna().any()]
                if stacked:
                    np.testing.assert_allclose(*stacked, rtol=rounding, atol=rounding, err_msg=name)


def in_pieces_of(monkeypatch, length, model, batch):
    """Make a scan of every hook point read `length` positions at a time."""
    weight, points = model.get_output_embeddings().weight, len(all_points(model)) - 2  # resid_pre is resid_post
    monkeypatch.setattr(blocks_module, "STATE_BYTES", length * points * weight.shape[1] * weight.element_size() * batch)


# every number


def test_every_number_equals_the_slow_reference(model, tokenizer, rollouts):
    found = scan(model, tokenizer, rollouts, readouts=("raw", "norm"))
    assert_says_the_reference(found.policies, model, rollouts[:3], all_points(model), ("raw", "norm"))


def test_the_models_own_policy_does_not_depend_on_the_readout(model, tokenizer, rollouts):
    policies: Any = scan(model, tokenizer, rollouts, readouts=("raw", "norm")).policies
    last = policies[policies["layer"] == 3]
    raw, normed = (last[last["readout"] == readout].reset_index(drop=True) for readout in ("raw", "norm"))
    assert raw["final.entropy"].equals(normed["final.entropy"])


def test_greedy_tokens_of_generate_have_rank_1(model, tokenizer):
    model.generation_config.eos_token_id = None
    one = random_rollout(6, 1)
    ids = model.generate(torch.tensor([one.prompt_ids]), max_new_tokens=9, do_sample=False, pad_token_id=1)[0, 6:]
    found = scan(model, tokenizer, [replace(one, response_ids=tuple(ids.tolist()))])
    assert (
        column(found.policies, 0, "raw", 3, "final.rank").tolist() == [1] * 9
    )  # generate took the likeliest token each time


def test_a_layers_input_is_the_output_of_the_layer_before(model, tokenizer, rollouts):
    policies = scan(model, tokenizer, rollouts).policies
    for number in range(len(rollouts)):
        before = column(policies, number, "raw", 0, "resid_post.entropy")
        assert np.array_equal(before, column(policies, number, "raw", 1, "resid_pre.entropy"))


def test_the_table_layers_has_the_means_of_policies(llama, tokenizer, rollouts):
    found: Any = scan(llama, tokenizer, rollouts, readouts=("raw", "norm"))
    names = [name for name in found.policies.columns if name not in (*KEYS, "position") and "topk" not in name]
    means = found.policies[KEYS + names].astype(dict.fromkeys(names, np.float64)).groupby(KEYS).mean()
    for site, rows in found.layers.groupby("site"):
        at = means.loc[pd.MultiIndex.from_frame(rows[KEYS])]
        for name in names:
            if name.startswith(f"{site}."):
                np.testing.assert_allclose(rows[name.split(".")[1]], at[name], rtol=1e-12, err_msg=name)


def test_the_table_layers_has_every_site_at_every_layer_and_final_last(llama, tokenizer, rollouts):
    layers: Any = scan(llama, tokenizer, rollouts[:1]).layers
    assert set(zip(layers["layer"], layers["site"], strict=True)) == {*product(range(3), SITES), (3, "final")}
    assert (layers["tokens"] == 5).all()


def test_a_scan_contains_the_rollouts_unchanged(llama, tokenizer, rollouts):
    found = scan(llama, tokenizer, rollouts).rollouts
    assert found["rollout"].tolist() == [0, 1, 2, 3, 4]
    assert [tuple(ids) for ids in found["response_ids"]] == [one.response_ids for one in rollouts]
    assert [tuple(ids) for ids in found["prompt_ids"]] == [one.prompt_ids for one in rollouts]


def test_every_response_token_has_a_row(llama, tokenizer, rollouts):
    policies = scan(llama, tokenizer, rollouts).policies
    for _, rows in policies[policies["layer"] == 3].groupby("readout"):
        assert rows["rollout"].value_counts(sort=False).tolist() == [5, 30, 1, 17, 2]


# other models


@pytest.mark.parametrize("n_layers", [1, 2, *slow(45)])
def test_a_model_of_any_depth_is_measured(tokenizer, rollouts, n_layers):
    model = tiny_model("llama", num_hidden_layers=n_layers)
    found = scan(model, tokenizer, rollouts[:2], sites=("attn_out", "resid_post"))
    points = [
        HookPoint(layer, site) for layer in {0, n_layers // 2, n_layers - 1} for site in ("attn_out", "resid_post")
    ]
    assert_says_the_reference(found.policies, model, rollouts[:2], [*points, FINAL])
    assert sorted(set(found.policies["layer"])) == list(range(n_layers + 1))


def test_a_tied_model_is_measured(family, tokenizer, rollouts):
    model = tiny_model(family, tie_word_embeddings=True)
    found = scan(model, tokenizer, rollouts)
    assert_says_the_reference(
        found.policies, model, rollouts[:2], [HookPoint(1, "mlp_out"), HookPoint(2, "resid_post"), FINAL]
    )


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "gemma3_text", "gpt_oss", "olmo3"])
def test_a_model_with_a_sliding_window_is_measured(family, tokenizer, rollouts):
    model = tiny_model(family, **WINDOWS.get(family, {}))
    found = scan(model, tokenizer, rollouts)
    assert_says_the_reference(
        found.policies, model, rollouts[:2], [HookPoint(1, "attn_out"), HookPoint(2, "resid_post")]
    )
    wide = {} if family in WINDOWS else {"sliding_window": 512}
    everywhere = scan(tiny_model(family, **wide), tokenizer, rollouts)
    assert not np.allclose(found.policies["attn_out.entropy"], everywhere.policies["attn_out.entropy"], equal_nan=True)


def test_a_vocabulary_larger_than_the_tokenizers_is_measured_whole(llama, tokenizer):
    assert len(tokenizer) < 315 < 320
    one = replace(random_rollout(4, 1), response_ids=(315, 319, 316))
    found = scan(llama, tokenizer, [one], top_k=320)
    assert_says_the_reference(found.policies, llama, [one], [HookPoint(1, "resid_post"), FINAL], top_k=320)
    assert sorted(column(found.policies, 0, "raw", 3, "final.topk_ids")[0].tolist()) == list(range(320))


def test_a_model_in_bfloat16_is_measured_with_statistics_in_float32(family, tokenizer):
    model: Any = tiny_model(family).bfloat16()
    one = random_rollout(3, 40)
    found = scan(model, tokenizer, [one]).policies
    with torch.inference_mode():
        states = read(model, all_points(model), torch.tensor([one.ids]))
    for point, hidden in states.items():
        logits = logit_transform(model)(hidden[0, 2:-1].double() @ model.get_output_embeddings().weight.double().T)
        layer = 3 if point == FINAL else point.layer
        error = column(found, 0, "raw", layer, f"{point.site}.entropy") - entropy(logits).detach().numpy()
        assert np.abs(error).max() < 1e-4, point


def test_the_way_a_gpu_measures_a_bias_equals_the_slow_reference(monkeypatch, tokenizer, rollouts):
    monkeypatch.setattr(scan_module, "choose", lambda *_: "stacked")
    model = tiny_model("phi")
    found = scan(model, tokenizer, rollouts, readouts=("raw", "norm"))
    assert_says_the_reference(found.policies, model, rollouts[:2], all_points(model), ("raw", "norm"))


def test_a_float32_model_is_close_to_the_reference(family, tokenizer, rollouts):
    double = tiny_model(family)
    exact = scan(double, tokenizer, rollouts).layers
    found = scan(double.float(), tokenizer, rollouts).layers
    np.testing.assert_allclose(found["entropy"], exact["entropy"], atol=1e-3)


# batches, pieces and selections


@pytest.mark.parametrize(("family", "batch_size"), [*product(FEW, [8]), ("llama", 2), ("llama", 3)])
def test_the_batch_size_does_not_change_the_numbers(model, tokenizer, rollouts, batch_size):
    alone = scan(model, tokenizer, rollouts, batch_size=1)
    assert_same(scan(model, tokenizer, rollouts, batch_size=batch_size), alone)


def test_the_order_of_rollouts_does_not_matter(model, tokenizer, rollouts):
    forth, back = scan(model, tokenizer, rollouts), scan(model, tokenizer, rollouts[::-1])
    for number in range(5):
        np.testing.assert_allclose(
            column(forth.policies, number, "raw", 2, "mlp_out.kl"),
            column(back.policies, 4 - number, "raw", 2, "mlp_out.kl"),
            rtol=1e-6,
        )


ELEVEN = [pytest.param(family, 11, marks=pytest.mark.slow) for family in FEW]


@pytest.mark.parametrize(("family", "length"), [*product(FEW, [7]), *ELEVEN, ("mistral", 1), ("mistral", 30)], ids=str)
def test_reading_in_pieces_does_not_change_the_numbers(monkeypatch, family, tokenizer, rollouts, length):
    check_pieces(monkeypatch, family, tokenizer, rollouts, length)


@pytest.mark.slow
@pytest.mark.parametrize("family", [n for n, row in FAMILIES.items() if row.cache and not n.startswith(DELTA_RULE)])
def test_reading_any_family_in_pieces_does_not_change_the_numbers(monkeypatch, family, tokenizer, rollouts):
    check_pieces(monkeypatch, family, tokenizer, rollouts, 4)


def check_pieces(monkeypatch, family, tokenizer, rollouts, length):
    model = tiny_model(family, **WINDOWS.get(family, {}))
    at_once = scan(model, tokenizer, rollouts)
    passes = []
    backbone(model).register_forward_pre_hook(lambda *_: passes.append(1))
    in_pieces_of(monkeypatch, length, model, len(rollouts))
    in_pieces = scan(model, tokenizer, rollouts)
    assert len(passes) >= 30 // length  # the longest is 31 tokens, of which the last predicts nothing
    assert_same(in_pieces, at_once, ROUNDING.get(family, 1e-6))


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_block_size_does_not_change_the_numbers(monkeypatch, llama, tokenizer, rollouts, block):
    expected = scan(llama, tokenizer, rollouts)
    monkeypatch.setattr(blocks_module, "TOGETHER", block)
    assert_same(scan(llama, tokenizer, rollouts), expected)


def test_the_pieces_seen_while_measuring_are_the_rows_of_the_scan(monkeypatch, llama, rollouts):
    monkeypatch.setattr(blocks_module, "TOGETHER", 7)
    pieces: list[pa.Table] = []
    scanner = Scanner.of(llama, Selection((0, 2), ("mlp_out",), ("raw", "norm")))
    policies, _ = scanner.measure(rollouts, 4, on_piece=pieces.append)
    assert pieces[0]["readout"].unique().to_pylist() == ["norm"]
    keys = [(name, "ascending") for name in ("rollout", "position", "readout", "layer")]
    assert pa.concat_tables(pieces).sort_by(keys).equals(policies.sort_by(keys))


def test_reading_in_pieces_equals_the_slow_reference(monkeypatch, model, tokenizer, rollouts):
    in_pieces_of(monkeypatch, 6, model, len(rollouts))
    found = scan(model, tokenizer, rollouts)
    assert_says_the_reference(
        found.policies, model, rollouts[:2], [HookPoint(1, "attn_out"), HookPoint(2, "resid_post")]
    )


@pytest.mark.slow
def test_a_model_compiled_in_regions_is_measured_the_same(tokenizer, rollouts):
    expected = scan(tiny_model("llama"), tokenizer, rollouts, readouts=["raw", "norm"])
    each = compile_regions(tiny_model("llama"), backend="eager")
    with torch.no_grad():
        each(torch.tensor([rollouts[0].ids]))  # compiles them without hooks
    assert_same(scan(each, tokenizer, rollouts, readouts=["raw", "norm"]), expected)


@pytest.mark.parametrize("readout", ["raw", "norm"])
def test_separately_compiled_layers_are_measured_the_same(tokenizer, rollouts, readout):
    expected, model = scan(tiny_model("llama"), tokenizer, rollouts, readouts=[readout]), tiny_model("llama")
    for layer in decoder_layers(model):
        layer.compile(backend="eager")
    with torch.no_grad():
        model(torch.tensor([rollouts[0].ids]))  # compiles them without hooks
    assert_same(scan(model, tokenizer, rollouts, readouts=[readout]), expected)


def test_the_record_names_the_policy_that_as_policy_opened(llama, tokenizer, rollouts):
    with as_policy(llama, HookPoint(1, "resid_post")):
        inside = scan(llama, tokenizer, rollouts)
    assert inside.record["model"] == f"{scan(llama, tokenizer, rollouts).record['model']} as 1.resid_post"


def test_a_scan_inside_as_policy_measures_that_policy(llama, tokenizer, rollouts):
    expected = scan(llama, tokenizer, rollouts, layers=[0, 1], readouts=["raw", "norm"], measures=["entropy"])
    with as_policy(llama, HookPoint(1, "resid_post")):
        found = scan(llama, tokenizer, rollouts, readouts=["raw", "norm"], measures=["entropy"])
    a, b = (each.policies[each.policies["layer"] < 2].drop(columns="final.entropy") for each in (found, expected))
    pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True), rtol=1e-6)
    for number in range(5):
        np.testing.assert_allclose(
            column(found.policies, number, "raw", 2, "final.entropy"),
            column(expected.policies, number, "raw", 1, "resid_post.entropy"),
            rtol=1e-6,
        )


def test_a_reader_that_skips_a_hook_point_is_an_error(llama, rollouts):
    reader = reader_of(llama)
    lazy = replace(reader, run=lambda points, visit, **inputs: reader.run(points[:-1], visit, **inputs))
    with pytest.raises(InputError, match=r"visited 1\.mlp_out 0 times instead of once"):
        list(blocks(lazy, rollouts, [FINAL, HookPoint(1, "mlp_out")]))


def offload(module, how, folder):
    """Make accelerate load the weights each time a module runs."""
    device = torch.device("cpu")
    if how == "cpu":
        cpu_offload(module, execution_device=device)
    else:
        disk_offload(module, str(folder), execution_device=device)


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_an_offloaded_unembedding_is_rejected(tokenizer, rollouts, tmp_path, how):
    model, point = tiny_model("llama"), HookPoint(1, "resid_post")
    offload(model, how, tmp_path)
    sentence = "The unembedding is offloaded, but a scan needs it at every token. Load the model with"
    with pytest.raises(InputError, match=sentence):
        scan(model, tokenizer, rollouts)
    with pytest.raises(InputError, match=sentence):
        dynamics.measure(model, rollouts, point)
    with pytest.raises(InputError, match=sentence):
        fit.fit(model, rollouts, [point], steps=1)


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_layers_are_measured_the_same(llama, tokenizer, rollouts, tmp_path, how):
    model = tiny_model("llama")
    for number, module in enumerate([model.get_input_embeddings(), *decoder_layers(model), final_norm(model)]):
        offload(module, how, tmp_path / str(number))
    assert all(weight.is_meta for weight in decoder_layers(model).parameters())
    readouts: Any = ["raw", "norm"]
    assert_same(
        scan(model, tokenizer, rollouts, readouts=readouts), scan(llama, tokenizer, rollouts, readouts=readouts)
    )


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_as_policy_works_on_an_offloaded_model(llama, input_ids, tmp_path, how):
    model, point = tiny_model("llama"), HookPoint(1, "attn_out")
    offload(model, how, tmp_path)
    expected = policy_logits(llama, point, input_ids=input_ids)
    assert torch.equal(policy_logits(model, point, input_ids=input_ids), expected)
    with as_policy(model, point):
        assert torch.equal(model(input_ids).logits, expected)


# a part of it


@pytest.mark.parametrize(
    "part",
    [
        {"layers": [1]},
        {"layers": [0, 2]},
        {"sites": ["attn_out"]},
        {"sites": ["resid_pre", "mlp_out"]},
        {"measures": ["entropy"]},
        {"measures": ["kl", "rank"]},
        {"measures": ["cosine", "norm"]},
        {"measures": ["entropy_at_input_norm"]},
        {"layers": [2], "sites": ["resid_post"], "measures": ["topk"]},
    ],
    ids=str,
)
def test_a_smaller_selection_has_the_same_numbers(llama, tokenizer, rollouts, part):
    whole: Any = scan(llama, tokenizer, rollouts).policies
    found: Any = scan(llama, tokenizer, rollouts, **part).policies
    sites, measures = part.get("sites", SITES), part.get("measures", MEASURES)
    names = {"topk_ids": "topk", "topk_probs": "topk"}
    wanted = [
        name
        for name in whole.columns
        if name in (*KEYS, "position")
        or (name.split(".")[0] in (*sites, "final") and names.get(end := name.split(".")[1], end) in measures)
    ]
    rows = whole[whole["layer"].isin([*part.get("layers", range(3)), 3])].reset_index(drop=True)
    assert list(found.columns) == wanted
    for name in wanted:
        a, b = found[name], rows[name]
        assert a.isna().tolist() == b.isna().tolist(), name
        if a.notna().any():
            if name.endswith("readout"):
                assert a.tolist() == b.tolist()
            else:
                np.testing.assert_allclose(*(np.stack(x.dropna().to_list()) for x in (a, b)), rtol=1e-6, atol=1e-6)


def test_a_top_k_of_0_keeps_no_likeliest_tokens(llama, tokenizer, rollouts):
    found = scan(llama, tokenizer, rollouts, top_k=0).policies
    assert not [name for name in found.columns if "topk" in name]


# memory


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


def of_at_most(n, error):
    """`blocks` that runs out of memory with more than `n` rollouts."""

    def blocks(model, rollouts, *rest):
        if len(rollouts) > n:
            raise error
        return full(model, rollouts, *rest)

    full = scan_module.blocks
    return blocks


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(CPU)], ids=["cuda", "cpu"])
def test_a_batch_that_does_not_fit_is_measured_in_halves(monkeypatch, llama, rollouts, error):
    selection, told = Selection((0, 1, 2)), []
    expected = Scanner.of(llama, selection).measure(rollouts, first=10)
    monkeypatch.setattr(scan_module, "blocks", of_at_most(2, error))
    found = Scanner.of(llama, selection).measure(rollouts, first=10, smaller=told.append)
    assert told == [3, 2]  # 5 split into 3 and 2; 3 into 2 and 1
    for one, other in zip(found, expected, strict=True):
        assert one["rollout"].equals(other["rollout"])
        for name in ("resid_post.entropy", "final.rank", "position", "entropy", "site"):
            if name in one.column_names:
                pd.testing.assert_series_equal(one[name].to_pandas(), other[name].to_pandas(), rtol=1e-6)


def test_a_rollout_that_does_not_fit_alone_is_an_error(monkeypatch, llama, rollouts):
    monkeypatch.setattr(scan_module, "blocks", of_at_most(0, torch.OutOfMemoryError(CUDA)))
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        Scanner.of(llama, Selection((0,))).measure(rollouts)


def test_other_errors_are_not_mistaken_for_a_lack_of_memory(monkeypatch, llama, rollouts):
    told = []
    monkeypatch.setattr(scan_module, "blocks", of_at_most(2, RuntimeError("a kernel that is not there")))
    with pytest.raises(RuntimeError, match="a kernel that is not there"):
        Scanner.of(llama, Selection((0,))).measure(rollouts, smaller=told.append)
    assert told == []


# the model afterwards


@pytest.mark.parametrize("training", [True, False])
def test_a_scan_restores_the_models_mode(model, tokenizer, rollouts, training):
    model.train(training)
    scan(model, tokenizer, rollouts)
    assert {module.training for module in model.modules()} == {training}


def test_a_frozen_part_stays_in_evaluation_mode(llama, tokenizer, rollouts):
    llama.train().get_submodule("model.layers.0").eval()
    before = {name: module.training for name, module in llama.named_modules()}
    scan(llama, tokenizer, rollouts)
    assert {name: module.training for name, module in llama.named_modules()} == before


def test_a_scan_restores_the_models_mode_after_an_exception(monkeypatch, llama, rollouts):
    monkeypatch.setattr(scan_module, "blocks", of_at_most(0, RuntimeError("in the middle")))
    with pytest.raises(RuntimeError, match="in the middle"):
        Scanner.of(llama.train(), Selection((0,))).measure(rollouts)
    assert llama.training


def test_a_model_in_training_mode_is_measured_without_dropout(tokenizer, rollouts):
    model = tiny_model("llama", attention_dropout=0.5)
    expected = scan(model.eval(), tokenizer, rollouts)
    assert_same(scan(model.train(), tokenizer, rollouts), expected)


def test_a_scan_leaves_no_hook(model, tokenizer, rollouts):
    before = hook_count(model)
    scan(model, tokenizer, rollouts)
    assert hook_count(model) == before


def test_a_model_can_be_trained_after_a_scan(model, tokenizer, rollouts, input_ids):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scan(model, tokenizer, rollouts)
    model(input_ids, labels=input_ids).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().max() > 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


# NaN


@pytest.mark.parametrize("family", [*LLAMA_SHAPED, "gemma2", "granite", "olmo2"])
def test_nan_weights_give_nan_from_that_layer_on(family, tokenizer, rollouts):
    model: Any = tiny_model(family)
    model.get_submodule("model.layers.1.mlp.down_proj").weight.data[3, 4] = torch.nan
    policies = scan(model, tokenizer, rollouts[:2]).policies
    for number, point in product(range(2), all_points(model)):
        layer = 3 if point == FINAL else point.layer
        found = column(policies, number, "raw", layer, f"{point.site}.entropy")
        broken = layer >= 2 or (layer, point.site) in {(1, "mlp_out"), (1, "resid_post")}
        assert np.isnan(found).all() if broken else np.isfinite(found).all(), point


@pytest.mark.parametrize(
    "name", ["entropy", "logprob", "kl", "norm", "cosine", "rank", "top1", "entropy_at_input_norm"]
)
def test_nan_weights_give_nan_means(llama, tokenizer, rollouts, name):
    llama.get_submodule("model.embed_tokens").weight.data[:] = torch.nan
    layers = scan(llama, tokenizer, rollouts[:2]).layers
    assert layers.loc[layers["site"] == "mlp_out", name].isna().all()


# refusals


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt_ids": ()}, r"Rollout 1 has no prompt tokens\."),
        ({"response_ids": ()}, r"Rollout 1 has no response tokens\."),
        (
            {"response_ids": (5, 320)},
            r"Rollout 1 has token id 320, but the model's are 0 to 319\. Was it written by another model",
        ),
        (
            {"prompt_ids": (-1, 5)},
            r"Rollout 1 has token id -1, but the model's are 0 to 319\. Was it written by another model",
        ),
        (
            {"response_ids": (5,) * 512},
            r"Rollout 1 has 515 tokens, but the model reads at most 512\. Shorten or remove it",
        ),
    ],
)
def test_a_rollout_that_the_model_cannot_read_is_rejected(llama, tokenizer, change, sentence):
    with pytest.raises(InputError, match=sentence):
        scan(llama, tokenizer, [random_rollout(3, 4), replace(random_rollout(3, 4), **change)])


def test_a_rollout_of_the_models_maximal_length_is_measured(llama, tokenizer):
    found = scan(llama, tokenizer, [random_rollout(1, 511)], layers=[0], sites=["resid_post"], measures=["entropy"])
    assert len(found.policies) == 2 * 2 * 511  # readouts, and layer 0 and final


def test_an_empty_list_of_rollouts_is_rejected(llama, tokenizer):
    with pytest.raises(InputError, match="no rollouts"):
        scan(llama, tokenizer, [])


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"layers": [0, 3]}, r"There is no layer 3: the model's layers are 0 to 2\."),
        ({"layers": [-1]}, r"There is no layer -1"),
        ({"layers": []}, r"at least one layer"),
        ({"sites": ["attn"]}, r"There is no site 'attn'"),
        ({"measures": ["entropi"]}, r"There is no measure 'entropi'"),
        ({"top_k": 321}, r"top-k is 321, but the model has only 320 tokens\."),
    ],
    ids=str,
)
def test_layers_and_sites_that_the_model_lacks_are_rejected(llama, tokenizer, rollouts, part, sentence):
    with pytest.raises(InputError, match=sentence):
        scan(llama, tokenizer, rollouts, **part)


# the vocabulary


def test_the_vocabulary_has_a_row_for_every_id_of_the_model(llama, tokenizer, rollouts):
    found = scan(llama, tokenizer, rollouts[:1]).vocabulary
    assert found["id"].tolist() == list(range(320))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_1_is_rejected(llama, tokenizer, batch_size):
    with pytest.raises(InputError, match=f"batch_size is {batch_size}; it must be 1 or more"):
        scan(llama, tokenizer, [], batch_size=batch_size)
