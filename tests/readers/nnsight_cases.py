"""Cases of test_nnsight.py, run in a separate process because importing nnsight changes the whole process."""

import copy
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import nnsight
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import all_points, hook_count, jsonl, random_rollout, read, same, saved, tiny_model
from nnsight import NNsight, TransformersModel
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.modeling import huggingface
from nnsight.schema.request import RequestModel
from transformers import AutoModelForCausalLM, DynamicCache

import internal_policy
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.measure.metrics import MEASURES
from internal_policy.models import checkpoint, loading
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.rows import FAMILIES
from internal_policy.readers import nnsight as door
from internal_policy.readers import remote as remotely
from internal_policy.scans import blocks, store
from internal_policy.scans.reader import reader_of
from internal_policy.scans.scan import scan
from internal_policy.scans.selection import Selection, plan
from internal_policy.tasks.rollouts import Rollout

SERVER = Path(__file__).parent / "server.py"
PAGE = Path(__file__).parents[2] / "docs" / "scan.md"
LENGTHS = [(3, 5), (1, 14), (12, 1), (9, 2)]
BOTH: Any = ("raw", "norm")
HERE = [HookPoint(0, "attn_out"), HookPoint(1, "resid_mid")]


@pytest.fixture
def rollouts() -> list[Rollout]:
    """Prompts and responses of very different lengths."""
    return [random_rollout(*lengths, seed) for seed, lengths in enumerate(LENGTHS)]


@pytest.fixture
def whole(tokenizer):
    """Wraps a model as nnsight.TransformersModel does, which brings its own tokenizer and padding."""
    return lambda model: TransformersModel(model, tokenizer=copy.deepcopy(tokenizer))


@pytest.fixture(params=["NNsight", "TransformersModel"])
def wrap(request, whole):
    return NNsight if request.param == "NNsight" else whole


def wrapped(model) -> Any:
    return NNsight(model)


def states(envoy, points, input_ids, **inputs) -> dict:
    """The hidden states that the reader visits, in the order they are reached."""
    seen = {}
    with torch.no_grad():
        reader_of(envoy).run(points, seen.__setitem__, input_ids=input_ids, **{"use_cache": False, **inputs})
    return seen


def close(one, other) -> None:
    """Compare up to float32's rounding, but ranks and likeliest tokens exactly."""
    for name in one.policies.columns:
        a, b = one.policies[name].dropna(), other.policies[name].dropna()
        if a.dtype == object or not pd.api.types.is_float_dtype(a):
            assert [np.array(x).tolist() for x in a] == [np.array(x).tolist() for x in b] or name.endswith("probs")
        else:
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=name)


# agreement with our hooks

BIASED = {"phi", "phimoe", "gptj", "codegen", "ctrl"}
"""Rows whose unembedding has a bias."""
REFUSED = sorted(name for name, row in FAMILIES.items() if row.flat or row.norm_first)
READABLE = sorted({*FAMILIES} - BIASED - {*REFUSED})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_hidden_states_and_measures_equal_ours_bit_for_bit(
    monkeypatch, family, dtype, attention, wrap, tokenizer, rollouts, input_ids
):
    model = tiny_model(family).to(dtype)
    model.set_attn_implementation(attention)
    envoy = wrap(model)
    ours, theirs = read(model, all_points(model), input_ids), states(envoy, all_points(model), input_ids)
    assert list(theirs) == all_points(model)
    assert all(torch.equal(theirs[point], ours[point]) for point in ours)
    same(scan(envoy, tokenizer, rollouts, readouts=BOTH), scan(model, tokenizer, rollouts, readouts=BOTH))
    monkeypatch.setattr(blocks, "STATE_BYTES", 4 * len(rollouts) * 22 * 32 * dtype.itemsize)  # 4 tokens at a time
    monkeypatch.setattr(blocks, "PREFILL", 2)
    same(scan(envoy, tokenizer, rollouts), scan(model, tokenizer, rollouts))


@pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output'")  # in RWKV
@pytest.mark.parametrize("family", READABLE)
def test_every_family_is_read_bit_for_bit(monkeypatch, family, tokenizer, rollouts):
    model = tiny_model(family)
    same(
        scan(NNsight(model), tokenizer, rollouts, readouts=BOTH),
        scan(model, tokenizer, rollouts, readouts=BOTH),
    )
    monkeypatch.setattr(blocks, "STATE_BYTES", 1)
    same(
        scan(NNsight(model), tokenizer, rollouts[:2], readouts=BOTH),
        scan(model, tokenizer, rollouts[:2], readouts=BOTH),
    )


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_nnsight_cannot_read_is_refused(family, tokenizer, rollouts):
    with pytest.raises(InputError, match=f"nnsight can't read {family}, because it"):
        scan(NNsight(tiny_model(family)), tokenizer, rollouts)


@pytest.mark.parametrize("family", sorted(BIASED))
def test_a_biased_unembedding_is_refused(family, tokenizer, rollouts):
    with pytest.raises(InputError, match="unembedding has a bias, which only scans of the model itself"):
        scan(NNsight(tiny_model(family)), tokenizer, rollouts)


def test_points_in_any_order_are_visited_in_forward_order(llama, input_ids):
    points = all_points(llama)
    assert list(states(NNsight(llama), [*points[::-1], *points], input_ids)) == points


def test_edits_of_the_wrapper_are_applied(llama, tokenizer, rollouts):
    envoy, other = wrapped(llama), tiny_model("llama")
    with envoy.edit() as (_, edited):
        edited.model.layers[1].mlp.output = edited.model.layers[1].mlp.output * 2
    other.get_parameter("model.layers.1.mlp.down_proj.weight").data *= 2
    same(scan(edited, tokenizer, rollouts), scan(other, tokenizer, rollouts))
    same(scan(envoy, tokenizer, rollouts), scan(llama, tokenizer, rollouts))


def test_an_edit_above_the_points_is_allowed(llama, input_ids):
    with wrapped(llama).edit() as (_, edited):
        edited.model.layers[2].output = edited.model.layers[2].output * 2
    assert torch.equal(states(edited, HERE, input_ids)[HERE[1]], read(llama, HERE, input_ids)[HERE[1]])


def test_an_edit_of_the_logits_is_rejected(llama, tokenizer, rollouts):
    with wrapped(llama).edit() as (_, edited):
        edited.lm_head.output = edited.lm_head.output * 2
    with pytest.raises(
        InputError, match=r"An edit of the wrapper comes after .*'model.lm_head.output.i0' .*clear_edits"
    ):
        scan(edited, tokenizer, rollouts)


# only what is needed runs


def passes(model) -> list[str]:
    """The names of the modules that run, in order."""
    seen = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


def test_a_trace_stops_after_the_last_point(llama, input_ids, wrap):
    ran = passes(llama)
    states(wrap(llama), HERE, input_ids)
    assert "model.layers.1.self_attn" in ran
    assert not {"model.layers.1.mlp", "model.layers.2.self_attn", "model.norm", "lm_head"} & {*ran}


def test_no_final_logits_are_computed(llama, tokenizer, rollouts, wrap):
    ran = passes(llama)
    scan(wrap(llama), tokenizer, rollouts)
    assert "model.layers.2.mlp" in ran
    assert "lm_head" not in ran


@pytest.mark.parametrize("points", [[], HERE])
def test_the_key_value_cache_is_filled_in_every_layer(llama, input_ids, points, wrap):
    kept = DynamicCache(config=llama.config)
    states(wrap(llama), points, input_ids, past_key_values=kept, use_cache=True)
    assert [kept.get_seq_length(layer) for layer in range(3)] == [11] * 3


# the wrapper afterwards


@pytest.fixture
def untouched(llama, input_ids):
    """A wrapper; on teardown, it and its model must be unchanged."""
    envoy = NNsight(llama)
    before, hooks, logits = dict(envoy.__dict__), hook_count(llama), llama(input_ids).logits
    yield envoy
    assert envoy.__dict__ == before
    assert hook_count(llama) == hooks
    assert not envoy.interleaver.mediators
    assert not envoy.interleaver.interleaving
    assert torch.equal(llama(input_ids).logits, logits)


def test_the_wrapper_is_unchanged_afterwards(untouched, tokenizer, rollouts):
    scan(untouched, tokenizer, rollouts)


def test_the_wrapper_is_unchanged_after_a_visitor_fails(untouched, input_ids):
    def visit(*_):
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        reader_of(untouched).run(HERE, visit, input_ids=input_ids, use_cache=False)


def test_the_wrapper_is_unchanged_after_the_model_fails(untouched):
    with pytest.raises(IndexError):
        states(untouched, HERE, torch.tensor([[5, 320]]))


def test_a_batch_that_does_not_fit_is_measured_in_halves(monkeypatch, llama, tokenizer, rollouts):
    def run(points, visit, *, input_ids, **inputs):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        whole.run(points, visit, input_ids=input_ids, **inputs)

    whole = reader_of(NNsight(llama))
    close(scan(replace(whole, run=run), tokenizer, rollouts), scan(llama, tokenizer, rollouts))


# remote scans


def test_a_remote_scan_equals_one_by_hooks_bit_for_bit(whole, tokenizer, rollouts):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model: Any = tiny_model("qwen3")
        model.to(dtype)
        found = scan(door.remote(whole(model), "local"), tokenizer, rollouts, readouts=BOTH)
        same(found, scan(model, tokenizer, rollouts, readouts=BOTH))


@pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output'")  # in RWKV
@pytest.mark.parametrize("family", READABLE)
def test_every_family_is_measured_remotely_bit_for_bit(family, whole, tokenizer, rollouts):
    model = tiny_model(family)
    same(
        scan(door.remote(whole(model), "local"), tokenizer, rollouts, readouts=BOTH),
        scan(model, tokenizer, rollouts, readouts=BOTH),
    )


@pytest.mark.parametrize(("step", "times"), [(1, 14), (4, 4)])
def test_long_texts_are_measured_remotely_piece_by_piece(monkeypatch, llama, whole, tokenizer, rollouts, step, times):
    planned, pieces, ask = plan(Selection((0, 1, 2))), [], door._ask
    states = len(planned.points) + planned.unembedded
    monkeypatch.setattr(door, "STATE_BYTES", step * states * 32 * 8 * len(rollouts))
    monkeypatch.setattr(door, "_ask", lambda *given: pieces.append(1) or ask(*given))
    close(
        scan(door.remote(whole(llama), "local"), tokenizer, rollouts, readouts=BOTH),
        scan(llama, tokenizer, rollouts, readouts=BOTH),
    )
    assert len(pieces) == times  # the first token is predicted at 0, and the last at 13


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 12,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 3.0, 9.0, 20.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}


@pytest.mark.parametrize("rope", [LONGROPE, DYNAMIC], ids=["longrope", "dynamic"])
def test_scans_rotate_each_text_as_if_read_alone(tokenizer, rollouts, rope):
    changes = {"rope_parameters": rope, "max_position_embeddings": 12 if rope is DYNAMIC else 512}
    expected = [scan(tiny_model("llama", **changes), tokenizer, [one]).policies for one in rollouts]
    found = scan(wrapped(tiny_model("llama", **changes)), tokenizer, rollouts).policies
    for number, one in enumerate(expected):
        rows = found[found["rollout"] == number].drop(columns="rollout").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, one.drop(columns="rollout"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [3, 100])
def test_remote_scans_rotate_each_text_as_if_read_alone(monkeypatch, whole, tokenizer, rollouts, step):
    model = tiny_model("llama", rope_parameters=LONGROPE)
    expected = [scan(model, tokenizer, [one]).policies for one in rollouts]
    monkeypatch.setattr(door, "STATE_BYTES", step * 22 * 32 * 8 * len(rollouts))
    found = scan(door.remote(whole(model), "local"), tokenizer, rollouts).policies
    for number, one in enumerate(expected):
        rows = found[found["rollout"] == number].drop(columns="rollout").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, one.drop(columns="rollout"), rtol=1e-5, atol=1e-6)


def test_dynamic_ntk_on_a_server_is_rejected(whole, tokenizer, rollouts):
    model = tiny_model("llama", rope_parameters=DYNAMIC, max_position_embeddings=12)
    sentence = r"A rollout has 15 tokens, but from 12 on the model's rotary embedding \(dynamic NTK\)"
    with pytest.raises(InputError, match=sentence):
        scan(door.remote(whole(model), "local"), tokenizer, rollouts)


@pytest.mark.parametrize(
    "part",
    [
        {"layers": [1], "sites": ["attn_out"]},
        {"readouts": ["norm"], "measures": ["kl", "rank"]},
        {"measures": ["norm", "cosine"]},
        {"measures": ["renyi_half", "renyi_2", "logit_scale"]},
        {"top_k": 0, "batch_size": 1},
    ],
    ids=str,
)
def test_a_selection_is_measured_remotely(llama, whole, tokenizer, rollouts, part):
    same(
        scan(door.remote(whole(llama), "local"), tokenizer, rollouts, **part), scan(llama, tokenizer, rollouts, **part)
    )


def measured(shape=(320, 32)):
    """What a server returns for random states."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 6, 32, generator=generator), torch.randn(320, 32, generator=generator)
    asked: Any = {"readouts": ("raw",), "shape": shape, "transform": {"divisor": 1.0, "cap": None}, "together": 4}
    asked["fields"] = {"measures": MEASURES, "top_k": 3}
    return remotely.measured([*hidden], [], weight, torch.arange(6), **asked)["raw"]


def test_half_precision_on_the_server_does_not_affect_measuring():
    expected = measured()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        found = measured()
    assert found.keys() == expected.keys()
    assert all(torch.equal(values.nan_to_num(), expected[name].nan_to_num()) for name, values in found.items())


def test_a_partial_unembedding_is_an_error():
    with pytest.raises(RuntimeError, match=r"the unembedding is \(320, 32\), expected \(640, 32\)"):
        measured((640, 32))


def test_the_sent_program_imports_only_torch_and_python_and_defines_names_once():
    import ast

    body = ast.parse(door.program()).body
    imported = {
        name.partition(".")[0]
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - sys.stdlib_module_names == {"torch"}
    named = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    named += [
        target.id
        for node in body
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if isinstance(target, ast.Name)
    ]
    assert len(named) == len(set(named))


# a server


@pytest.fixture(scope="module")
def served(tmp_path_factory, tokenizer):
    """A folder with a model in bfloat16, and that model."""
    folder = saved(tiny_model("qwen3").bfloat16(), tokenizer, tmp_path_factory.mktemp("served"))
    return folder, AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def ndif(monkeypatch, tmp_path, served):
    """A stand-in for NDIF in another process; returns the bytes sent to it and received from it."""
    sizes: dict[str, Any] = {"holds": "weights"}
    folder = served[0]

    def request(self, _, tracer):
        (tmp_path / "asked").write_bytes(blob := self._serialize(tracer))
        words = [SERVER, folder, tmp_path / "asked", tmp_path / "answer", sizes["holds"]]
        done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            raise RemoteError(done.stderr)
        sizes["asked"], sizes["answer"] = len(blob), len(answer := (tmp_path / "answer").read_bytes())
        return self.finalize(answer)

    monkeypatch.setattr(RemoteBackend, "request", request)
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "a-key")
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setitem(huggingface._ID_CACHE, "some/qwen3", "some/qwen3")  # replaces a request to the hub
    return sizes


@pytest.mark.parametrize("holds", ["weights", "nothing"])
def test_a_process_without_this_package_measures_bit_for_bit(ndif, served, tokenizer, rollouts, holds):
    ndif["holds"], model = holds, served[1]
    envoy = door.boot("some/qwen3", model.config, tokenizer, "main")
    assert envoy.device == torch.device("meta")
    same(scan(door.remote(envoy), tokenizer, rollouts, readouts=BOTH), scan(model, tokenizer, rollouts, readouts=BOTH))
    assert ndif["asked"] < 20_000
    assert ndif["answer"] < 60_000


def sent_and_saved(monkeypatch, model, tokenizer, rollouts):
    """The bytes that would go to a server, and what would come back."""
    blobs, saved = [], []
    serialize, ask = RequestModel.serialize, door._ask
    monkeypatch.setattr(RequestModel, "serialize", lambda *a, **b: blobs.append(serialize(*a, **b)) or blobs[-1])
    monkeypatch.setattr(door, "_ask", lambda *given: saved.append(ask(*given)) or saved[-1])
    scan(door.remote(TransformersModel(model, tokenizer=copy.deepcopy(tokenizer)), "local"), tokenizer, rollouts)
    monkeypatch.undo()
    return blobs[0], saved[0]


def test_numbers_are_sent_back_and_hidden_states_are_not(monkeypatch, tokenizer, rollouts):
    answers = []
    for d_model in (48, 96):
        model = tiny_model("llama", hidden_size=d_model)
        blob, found = sent_and_saved(monkeypatch, model, tokenizer, rollouts)
        assert len(blob) < 60_000 < model.lm_head.weight.nbytes
        tensors = [values for one in found.values() for values in one.values()]
        assert all(values.dtype in (torch.float32, torch.int32) for values in tensors)
        assert {values.shape[:2] for values in tensors} == {(20, 22)}  # hook points, response tokens
        assert {values.shape[2:] for values in tensors} == {(), (5,)}
        assert sum(values.nbytes for values in tensors) == 2 * 68 * 20 * 22  # two readouts: 7 numbers, and 5 tokens
        torch.save(found, buffer := io.BytesIO())
        answers.append(buffer.tell())
    assert answers[0] == answers[1]


def test_a_batch_too_large_for_the_server_is_sent_in_halves(monkeypatch, llama, whole, tokenizer, rollouts):
    def request(backend, _, tracer):
        if len(tracer.kwargs["input_ids"]) > 2:
            raise RemoteError("Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        backend.local(tracer)

    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "a-key")
    monkeypatch.setattr(RemoteBackend, "request", request)
    monkeypatch.setattr(door.TransformersModel, "to_model_key", lambda _: "a key")
    envoy = whole(llama)
    monkeypatch.setattr(RemoteBackend, "local", envoy._remote_backend("local", True, None, False), raising=False)
    close(scan(door.remote(envoy), tokenizer, rollouts), scan(llama, tokenizer, rollouts))


def test_a_server_error_is_one_sentence(monkeypatch, llama, whole, tokenizer, rollouts):
    def request(*_):
        raise RemoteError("Traceback (most recent call last):\n  somewhere\nValueError: no such model")

    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "a-key")
    monkeypatch.setattr(RemoteBackend, "request", request)
    monkeypatch.setattr(door.TransformersModel, "to_model_key", lambda _: "a key")
    with pytest.raises(InputError, match=r"didn't measure this \(ValueError: no such model\)\. .* nnsight\.status\(\)"):
        scan(door.remote(whole(llama)), tokenizer, rollouts)


# refusals


def test_a_wrapper_without_weights_is_rejected(llama, tokenizer, rollouts):
    envoy = door.boot("some/llama", llama.config, tokenizer, "main")
    with pytest.raises(InputError, match=r"has no weights yet\. Call its dispatch\(\), or let NDIF measure"):
        scan(envoy, tokenizer, rollouts)


def test_a_wrapper_of_part_of_a_model_is_rejected(llama, tokenizer, rollouts):
    with pytest.raises(InputError, match=r"nnsight wraps a LlamaModel\. Wrap a whole causal language model"):
        scan(NNsight(llama).model, tokenizer, rollouts)
    with pytest.raises(InputError, match="nnsight wraps a Linear"):
        scan(NNsight(torch.nn.Linear(2, 2)), tokenizer, rollouts)


def test_a_wrapper_that_no_server_knows_is_rejected(llama):
    with pytest.raises(
        InputError, match=r"A server can't tell which model NNsight wraps. Use nnsight.TransformersModel"
    ):
        door.remote(NNsight(llama))


def test_ndif_without_a_key_is_rejected(monkeypatch, whole, llama):
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    with pytest.raises(InputError, match=r"NDIF needs a key\. Get one at https://login.ndif.us, then set NDIF_API_KEY"):
        door.remote(whole(llama))
    door.remote(whole(llama), "https://ndif.example.org")


def test_a_lens_on_a_server_is_rejected(whole, llama, tokenizer, rollouts):
    def mine(hidden, _):
        return hidden

    with pytest.raises(InputError, match=r"The lens 'mine' can't be used on a server\. Use raw or norm"):
        scan(door.remote(whole(llama), "local"), tokenizer, rollouts, readouts=[mine])


def test_hidden_states_cannot_be_read_from_a_server(whole, llama, rollouts):
    with pytest.raises(InputError, match="Hidden states stay on the server"):
        next(blocks.blocks(door.remote(whole(llama), "local"), rollouts, [FINAL]))


# the documentation


def test_the_example_on_the_page_about_scans_runs(llama, tokenizer, rollouts):
    (example,) = re.findall(r"```py\n(import nnsight\n.*?)```", PAGE.read_text(), re.DOTALL)
    example = example.replace('"meta-llama/Llama-3.1-70B")', 'model, tokenizer=copy.deepcopy(tokenizer)), "local"')
    names: Any = {"ip": internal_policy, "model": llama, "tokenizer": tokenizer, "rollouts": rollouts, "copy": copy}
    exec(example, names)
    same(names["here"].source, names["there"].source)


# the command line


@pytest.fixture
def responses(tmp_path, monkeypatch) -> Path:
    """Three responses as another program wrote them, in a folder to work in with a cache of its own."""
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {n} + 5?", "response": f"It is {n + 5}."} for n in (1, 20, 300)]
    jsonl(tmp_path / "responses.jsonl", *rows)
    return tmp_path / "responses.jsonl"


def tables(folder: str) -> dict[str, pd.DataFrame]:
    return {kind: store.read(Path(folder), kind) for kind in store.KINDS}


@pytest.mark.usefixtures("responses")
def test_the_command_line_reads_with_nnsight(served):
    asked = ["scan", "--model", str(served[0]), "--limit", "3", "--max-new-tokens", "6"]
    assert main([*asked, "--output", "hooks"]) == 0
    assert main([*asked, "--output", "other", "--reader", "nnsight"]) == 0
    for kind, frame in tables("other").items():
        pd.testing.assert_frame_equal(frame, tables("hooks")[kind], check_exact=True)
    ours, other = store.record(Path("hooks")), store.record(Path("other"))
    assert other["reader"] == "nnsight"
    assert other["versions"].keys() - ours["versions"].keys() == {"nnsight"}
    assert other["asked"] == {**ours["asked"], "reader": "nnsight"}


@pytest.mark.usefixtures("ndif")
def test_the_command_line_measures_on_ndif(served, responses, tmp_path, monkeypatch, capsys):
    hub = tmp_path / "models--some--qwen3"  # what the hub's client would have downloaded: everything but weights
    shutil.copytree(served[0], hub / "snapshots" / "abc", ignore=shutil.ignore_patterns("*.safetensors"))
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    asked = ["scan", "--rollouts", str(responses), "--readout", "both"]
    assert main([*asked, "--model", str(served[0]), "--output", "hooks"]) == 0
    capsys.readouterr()
    remote = ["--model", "some/qwen3", "--reader", "nnsight", "--remote", "--output", "there", "--json"]
    assert main([*asked, *remote]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "https://api.ndif.us"
    for kind, frame in tables("there").items():
        pd.testing.assert_frame_equal(frame, tables("hooks")[kind], check_exact=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--remote"], "--remote measures through nnsight, but --reader is hooks. Add --reader nnsight."),
        (["--remote", "--reader", "nnsight"], "Give them with --rollouts"),
        (["--remote", "--reader", "nnsight", "--rollouts", "r.jsonl"], "but --model is the folder demo-qwen3"),
        (
            ["--remote", "--reader", "nnsight", "--rollouts", "r.jsonl", "--dtype", "float32"],
            "--dtype has no effect with --remote",
        ),
    ],
)
def test_remote_with_unsuitable_options_is_rejected(words, sentence, responses, capsys):
    assert main(["scan", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_remote_without_a_key_is_rejected_before_any_work(served, responses, monkeypatch, capsys):
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    monkeypatch.setattr(checkpoint, "identity", lambda _: "a commit")
    monkeypatch.setattr(loading, "load_config", None)
    words = ["scan", "--remote", "--reader", "nnsight", "--rollouts", str(responses), "--model", "some/qwen3"]
    assert main(words) == 2
    assert "https://login.ndif.us" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "package"), [("nnsight", "nnsight"), ("transformer-lens", "transformer_lens")])
def test_an_error_names_a_missing_library_before_any_work(name, package, responses, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(loading, "load_config", None)
    assert main(["scan", "--reader", name]) == 2
    assert f"pip install 'internal-policy[{name}]'" in capsys.readouterr().err
