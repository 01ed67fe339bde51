"""A lens is another readout: any callable, or the maps in a file."""

import inspect
import json
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import hook_count, random_rollout, tiny_model
from safetensors.torch import load_file, save_file
from torch import nn

from internal_policy.errors import InputError
from internal_policy.lenses import file, lens
from internal_policy.lenses.header import KIND_OF
from internal_policy.lenses.lens import FittedLens, Jacobian, LensReadout, Translator
from internal_policy.look.view import LENSES
from internal_policy.measure.sites import SITES
from internal_policy.models import loading
from internal_policy.models.checkpoint import Checkpoint, identity
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.modules import final_norm
from internal_policy.models.origin import identity_of
from internal_policy.models.policy import as_policy, policy_logits, read_out, readout_name, unembed
from internal_policy.scans.scan import Scanner, scan
from internal_policy.scans.selection import Selection, canonical

STREAM = ("resid_pre", "resid_post")
POINTS = [HookPoint(0, "resid_pre"), HookPoint(0, "resid_post"), HookPoint(1, "resid_post")]
"""Those of the stream of a model of 3 layers that take a translator."""


def halved(hidden, point):
    """A lens that depends on the hook point, and doesn't use the norm."""
    return hidden / (2 + point.layer)


def random_translators(points=POINTS, d_model=32, scale=0.1, **about) -> FittedLens:
    draw = torch.Generator().manual_seed(0)
    at = {
        point: Translator(
            torch.randn(d_model, d_model, generator=draw).double() * scale,
            torch.randn(d_model, generator=draw).double() * scale,
        )
        for point in points
    }
    return FittedLens(at, 3, about)


@pytest.fixture
def tuned(llama) -> LensReadout:
    return lens.of(random_translators(), llama)


# any callable


def test_unembed_applies_a_lens(model, input_ids):
    point = HookPoint(1, "resid_post")
    raw = policy_logits(model, point, lambda hidden, _: hidden, input_ids=input_ids)
    assert torch.equal(raw, policy_logits(model, point, input_ids=input_ids))
    normed = policy_logits(model, point, lambda hidden, _: final_norm(model)(hidden), input_ids=input_ids)
    assert torch.equal(normed, policy_logits(model, point, "norm", input_ids=input_ids))


def test_training_a_lens_translators_trains_the_lens(llama):
    translators = random_translators()
    assert lens.of(translators, llama.to("meta")).lens is translators


def test_a_lens_that_writes_in_place_does_not_change_other_readouts(llama, tokenizer):
    def twice(hidden, _):
        return hidden.mul_(2)

    both = scan(llama, tokenizer, [random_rollout()], readouts=[twice, "raw"]).policies
    alone = scan(llama, tokenizer, [random_rollout()], readouts=["raw"]).policies
    raw = both[both["readout"] == "raw"].reset_index(drop=True)
    assert raw.equals(alone)


def test_a_misspelled_readout_is_rejected(llama):
    unchecked = inspect.unwrap(read_out)  # as it is outside tests, where nothing checks types
    with pytest.raises(InputError, match=r"There is no readout 'norn'\. Use raw or norm, or pass a callable"):
        unchecked(llama, torch.zeros(1, 32), "norn", HookPoint(1, "resid_post"))


def test_a_lens_receives_the_hook_point(llama, input_ids):
    told = []
    policy_logits(llama, HookPoint(1, "mlp_out"), lambda h, point: (told.append(point), h)[1], input_ids=input_ids)
    assert told == [HookPoint(1, "mlp_out")]


def test_at_final_a_lens_is_never_applied(model, input_ids):
    own = model(input_ids).logits
    assert torch.equal(policy_logits(model, FINAL, halved, input_ids=input_ids), own)
    with as_policy(model, FINAL, halved):
        assert torch.equal(model(input_ids).logits, own)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("normed", [False, True], ids=["without the norm", "through the model's norm"])
def test_inside_as_policy_the_logits_are_those_of_the_lens(llama, input_ids, site, normed):
    point, hooks = HookPoint(1, site), hook_count(llama)

    def through(hidden, point):
        return final_norm(llama)(halved(hidden, point)) if normed else halved(hidden, point)

    expected = policy_logits(llama, point, through, input_ids=input_ids)
    with as_policy(llama, point, through):
        assert torch.equal(llama(input_ids).logits, expected)
        assert torch.equal(llama(input_ids).logits, expected)
    assert hook_count(llama) == hooks
    assert not torch.equal(expected, policy_logits(llama, point, "norm", input_ids=input_ids))


def test_a_lens_that_fails_inside_as_policy_leaves_the_model_unchanged(llama, input_ids):
    before, hooks = llama(input_ids).logits, hook_count(llama)

    def broken(hidden, point):
        raise RuntimeError("in the lens")

    with pytest.raises(RuntimeError, match="in the lens"), as_policy(llama, HookPoint(1, "mlp_out"), broken):
        llama(input_ids)
    assert hook_count(llama) == hooks
    assert torch.equal(llama(input_ids).logits, before)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_inside_as_policy_samples_through_the_lens(llama, tuned, input_ids, use_cache):
    llama.generation_config.eos_token_id, llama.generation_config.pad_token_id = None, 1
    point, ids = HookPoint(1, "resid_post"), input_ids
    for _ in range(5):
        ids = torch.cat([ids, policy_logits(llama, point, tuned, input_ids=ids)[:, -1:].argmax(-1)], 1)
    with as_policy(llama, point, tuned):
        assert torch.equal(llama.generate(input_ids, max_new_tokens=5, do_sample=False, use_cache=use_cache), ids)


def test_gradients_flow_through_a_lens(llama, input_ids):
    with as_policy(llama, HookPoint(1, "resid_post"), halved):
        llama(input_ids).logits.log_softmax(-1)[..., 7].sum().backward()
    assert llama.model.layers[1].mlp.down_proj.weight.grad.abs().max() > 0
    assert llama.model.norm.weight.grad is None


def test_a_lens_without_a_hook_point_is_rejected(llama):
    state = torch.ones(32, dtype=torch.float64)
    with pytest.raises(InputError, match=r"'halved' needs to know where .* Pass `point` too, such as HookPoint\(5"):
        unembed(llama, state, halved)
    assert unembed(llama, state, halved, HookPoint(0, "attn_out")).shape == (320,)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (
            lambda hidden: hidden[..., :16],
            r"returned a tensor of shape \(2, 11, 16\) at 1.mlp_out; expected .* \(2, 11, 3",
        ),
        (lambda hidden: hidden[:, -1], r"returned a tensor of shape \(2, 32\)"),
        (lambda _: None, r"returned a NoneType"),
    ],
)
def test_a_lens_that_returns_anything_but_a_hidden_state_is_rejected(llama, input_ids, returned, said):
    def strange(hidden, point):
        return returned(hidden)

    with pytest.raises(InputError, match=rf"The lens 'strange' {said}"):
        policy_logits(llama, HookPoint(1, "mlp_out"), strange, input_ids=input_ids)


# its name


class Called:
    """A lens that is an object."""

    def __call__(self, hidden, point):
        return hidden


def test_a_readout_has_the_name_of_its_function_or_class(tuned):
    named = partial(halved)
    named.__name__ = "my_own"  # pyright: ignore[reportAttributeAccessIssue]
    names = [readout_name(readout) for readout in ("raw", "norm", halved, partial(halved), named, Called(), tuned)]
    assert names == ["raw", "norm", "halved", "halved", "my_own", "Called", "tuned"]
    assert readout_name(replace(tuned, name="mine")) == "mine"


def test_a_lens_named_like_another_readout_is_rejected():
    def norm(hidden, point):
        return hidden

    with pytest.raises(
        InputError, match=r"A lens can't be called 'norm', because that is a readout\. Give it another __name__"
    ):
        readout_name(norm)


def test_two_readouts_with_one_name_are_rejected(llama, tokenizer):
    with pytest.raises(InputError, match=r"Two readouts are called 'halved'\. .* give a lens another __name__"):
        scan(llama, tokenizer, [random_rollout()], readouts=(halved, partial(halved)))


def test_an_unknown_readout_is_rejected(llama):
    selection = Selection((0,), readouts=("raw", "rwa"))
    with pytest.raises(InputError, match=r"There is no readout 'rwa'\. Choose from raw, norm, halved"):
        Scanner.of(llama, selection, {"halved": halved})


# in a scan


def test_a_scan_through_a_lens_agrees_with_policy_logits(model, tokenizer):
    one = random_rollout()
    found = scan(model, tokenizer, [one], layers=[1], readouts=("raw", halved))
    rows = found.policies[(found.policies["readout"] == "halved") & (found.policies["layer"] == 1)]
    for site in {*SITES} & {str(name).partition(".")[0] for name in rows}:
        point = canonical(1, site)  # the hook points that the lens receives
        with torch.no_grad():
            logits = policy_logits(model, point, halved, input_ids=torch.tensor([one.ids]))[0, 3:-1]
        expected = torch.distributions.Categorical(logits=logits).entropy()
        np.testing.assert_allclose(rows[f"{site}.entropy"], expected.numpy(), atol=1e-5)


def test_a_lens_changes_neither_the_other_readouts_nor_the_final_policy(llama, tokenizer):
    rollouts = [random_rollout(), random_rollout(2, 5, seed=1)]
    alone = scan(llama, tokenizer, rollouts, readouts=["raw"])
    both = scan(llama, tokenizer, rollouts, readouts=["raw", "norm", halved])
    raw = both.policies[both.policies["readout"] == "raw"].reset_index(drop=True)
    for name in alone.policies.columns:
        assert raw[name].map(str).tolist() == alone.policies[name].map(str).tolist()
    final = both.policies[["rollout", "position", "readout", "final.entropy"]].dropna()
    wide = final.pivot(index=["rollout", "position"], columns="readout", values="final.entropy")
    assert (wide["raw"] == wide["halved"]).all()
    assert (wide["raw"] == wide["norm"]).all()


def test_the_norm_control_is_measured_only_for_the_raw_readout(llama, tokenizer):
    found = scan(llama, tokenizer, [random_rollout()], readouts=("raw", halved)).layers
    known = found[found["site"].isin(["attn_out", "mlp_out", "resid_post"])].groupby("readout")
    assert known["entropy_at_input_norm"].count().to_dict() == {"raw": 9, "halved": 0}


def test_a_scan_through_a_lens_leaves_no_hook(llama, tuned, tokenizer):
    before = hook_count(llama)
    scan(llama, tokenizer, [random_rollout()], sites=STREAM, readouts=("norm", tuned))
    assert hook_count(llama) == before


# affine translators


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_translators_of_0_are_the_norm_readout_bit_for_bit(family, tokenizer, dtype):
    model: Any = tiny_model(family).to(dtype)
    identity = lens.of(FittedLens({p: Translator(torch.zeros(32, 32), torch.zeros(32)) for p in POINTS}, 3), model)
    found = scan(model, tokenizer, [random_rollout()], sites=STREAM, readouts=("norm", identity)).policies
    normed, mapped = (found[found["readout"] == name].drop(columns="readout") for name in ("norm", "tuned"))
    assert normed.map(str).to_numpy().tolist() == mapped.map(str).to_numpy().tolist()


def test_a_translators_result_is_added_before_the_norm(llama, tuned, input_ids):
    state = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight, bias = tuned.lens.at[POINTS[1]]
    expected = torch.stack([llama.model.norm(h + weight @ h + bias) for h in state]) @ llama.lm_head.weight.T
    torch.testing.assert_close(unembed(llama, state, tuned, POINTS[1]), expected, rtol=1e-12, atol=1e-12)


def test_a_layers_input_uses_the_translator_of_the_layer_before(llama, tuned, input_ids):
    one, other = (
        policy_logits(llama, point, tuned, input_ids=input_ids)
        for point in (HookPoint(1, "resid_pre"), HookPoint(0, "resid_post"))
    )
    assert torch.equal(one, other)


def test_the_output_of_the_last_layer_needs_no_translator(llama, tuned, input_ids):
    logits = policy_logits(llama, HookPoint(2, "resid_post"), tuned, input_ids=input_ids)
    assert torch.equal(logits, llama(input_ids).logits)


def test_translators_of_a_bfloat16_model_are_applied_in_float32(llama):
    model, state = llama.bfloat16(), torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    translators = FittedLens(
        {point: Translator(*(tensor.float() for tensor in one)) for point, one in random_translators().at.items()}, 3
    )
    weight, bias = (tensor.float() for tensor in random_translators().at[POINTS[1]])
    exact = state.float() + state.float() @ weight.T + bias
    assert torch.equal(LensReadout(translators, nn.Identity(), "tuned")(state, POINTS[1]), exact.bfloat16())
    assert unembed(model, state, lens.of(translators, model), POINTS[1]).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("points", "asked", "said"),
    [
        (
            POINTS,
            HookPoint(1, "attn_out"),
            r"not fitted at 1.attn_out, only at 3 hook points at resid_pre, resid_post\. ",
        ),
        (
            POINTS,
            HookPoint(1, "attn_out"),
            r"Read only those \(scan --sites resid_pre,resid_post\), or fit a lens with fit-lens --sites all\.",
        ),
        (
            POINTS[:2],
            HookPoint(1, "resid_post"),
            r"not fitted at 1.resid_post, .*\. Read only those \(scan --layers 0\), or fit a lens",
        ),
        (
            [HookPoint(2, "mlp_out")],
            HookPoint(2, "resid_pre"),
            r"at 1 hook point at mlp_out\. Read only those \(scan --sites mlp_out\)",
        ),
    ],
)
def test_an_error_for_a_missing_translator_lists_the_existing_ones(llama, points, asked, said):
    translators = random_translators(points)
    with pytest.raises(InputError, match=said):
        translators.check([*points, HookPoint(2, "resid_post"), asked])
    with pytest.raises(InputError, match=said):
        unembed(llama, torch.ones(32, dtype=torch.float64), lens.of(translators, llama), asked)


# files


def test_a_written_lens_is_read_back(llama, tmp_path):
    translators = random_translators(model="tiny", kl=[{"layer": 0, "mean": 0.5}])
    file.save(tmp_path / "lens.safetensors", translators)
    found = file.load(tmp_path / "lens.safetensors", llama)
    assert found.lens.about == {"model": "tiny", "kl": [{"layer": 0, "mean": 0.5}]}
    keys = {f"{point}.{kind}" for point in POINTS for kind in ("bias", "weight")}
    assert load_file(tmp_path / "lens.safetensors").keys() == keys
    assert found.lens.at.keys() == translators.at.keys()
    for point, one in translators.at.items():
        assert all(torch.equal(a, b) for a, b in zip(found.lens.at[point], one, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["lens.safetensors"]


def test_from_python_a_lens_of_another_model_is_refused_unless_it_is_asked_for(llama, tmp_path):
    for name in ("a", "b"):
        tiny_model("llama").save_pretrained(tmp_path / name)
        (tmp_path / name / "generation_config.json").write_text(json.dumps({"max_new_tokens": ord(name)}))
    model, other = (loading.load_model(Checkpoint(str(tmp_path / name))) for name in ("a", "b"))
    file.save(tmp_path / "lens", random_translators(model="tiny", identity=identity_of(model)))
    assert identity_of(model) == identity(Checkpoint(str(tmp_path / "a")))
    assert file.load(tmp_path / "lens", model).lens.at
    with pytest.raises(InputError, match=r"to another model, tiny \(sha256 .*\), but this is /.*/b \(sha256"):
        file.load(tmp_path / "lens", other)
    assert file.load(tmp_path / "lens", other, of_another_model=True).lens.at


def test_a_lens_that_cannot_be_matched_with_a_model_is_noted_once(llama, tmp_path, capsys):
    about: dict[str, Any]
    for name, about in (("without", {}), ("with", {"identity": "commit a"})):
        file.save(tmp_path / name, random_translators(**about))
        file.load(tmp_path / name, llama)
        file.load(tmp_path / name, llama)
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first.endswith("without doesn't record which model it was fitted to, so only its shapes were checked.")
    assert second.endswith("with can't be matched with this model, so only its shapes were checked.")


def test_the_same_lens_gives_the_same_file(tmp_path):
    for name in ("a", "b"):
        file.save(tmp_path / name, random_translators(model="tiny", identity="x", d_model=32, seed=0))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(file, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.save(tmp_path / "lens.safetensors", random_translators())
    assert not list(tmp_path.iterdir())


@pytest.fixture
def theirs(tmp_path, llama):
    """A lens in the layout of the tuned-lens library, which has a translator for the input of every layer."""
    draw = torch.Generator().manual_seed(0)
    tensors = {f"{n}.weight": 0.1 * torch.randn(32, 32, generator=draw) for n in range(3)}
    tensors |= {f"{n}.bias": 0.1 * torch.randn(32, generator=draw) for n in range(3)}
    save_file(tensors, tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors", tensors


def test_a_tuned_lens_library_file_is_numbered_by_hidden_states(llama, theirs, input_ids):
    path, tensors = theirs
    tuned, head = file.load(path, llama), llama.lm_head.weight
    states = llama(input_ids, output_hidden_states=True).hidden_states
    for number in range(3):
        weight, bias = tensors[f"{number}.weight"].double(), tensors[f"{number}.bias"].double()
        expected = llama.model.norm(states[number] + states[number] @ weight.T + bias) @ head.T
        found = policy_logits(llama, HookPoint(number, "resid_pre"), tuned, input_ids=input_ids)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_tuned_lens_library_file_is_saved_in_our_layout(llama, theirs, tmp_path):
    path, tensors = theirs
    file.save(tmp_path / "ours.safetensors", file.load(path, llama).lens)
    ours = load_file(tmp_path / "ours.safetensors")
    assert torch.equal(ours["0.resid_pre.weight"], tensors["0.weight"])
    assert torch.equal(ours["1.resid_post.bias"], tensors["2.bias"])
    again = file.load(tmp_path / "ours.safetensors", llama).lens
    assert [str(point) for point in again.at] == ["0.resid_pre", "0.resid_post", "1.resid_post"]


def square(**changes):
    return {"0.resid_post.weight": torch.zeros(32, 32), "0.resid_post.bias": torch.zeros(32), **changes}


BAD = {
    "another key": (
        {"model.norm.weight": torch.ones(32)},
        "has the key 'model.norm.weight', but a lens has keys such as 5.r",
    ),
    "another site": ({"0.attn.weight": torch.ones(32)}, "has the key '0.attn.weight', but"),
    "final": (square(**{"final.weight": torch.zeros(32, 32)}), "has the key 'final.weight', but"),
    "another width": (
        {"0.resid_post.weight": torch.zeros(16, 16)},
        r"has 0.resid_post.weight of shape \(16, 16\), but the model's hidden states have 32 entries",
    ),
    "more layers": (
        {"3.weight": torch.zeros(32, 32)},
        "has a map for layer 3, but the model's layers are 0 to 2. Use a lens for this model",
    ),
    "NaN": (
        square(**{"0.resid_post.bias": torch.full((32,), torch.nan)}),
        "has NaN or infinite values in 0.resid_post.bias",
    ),
    "half a translator": (
        {"1.weight": torch.zeros(32, 32)},
        "has no bias for 0.resid_post. Get a complete copy of the lens",
    ),
    "two translators": (
        square(**{"1.resid_pre.bias": torch.zeros(32)}),
        "has bias twice for 0.resid_post. Remove one",
    ),
    "nothing": ({}, "contains no lens. Fit one with `internal-policy fit-lens`"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_lens_gets_a_one_sentence_error(case, llama, tmp_path):
    tensors, said = BAD[case]
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=said) as error:
        file.load(tmp_path / "bad.safetensors", llama)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "Can't read"),
        (lambda path: path.write_bytes(b"nonsense"), "Can't read"),
        (lambda path: save_file(square(), path, {"internal_policy": "{"}), "Can't read"),
        (lambda path: save_file(square(), path, {"internal_policy": "7"}), "Can't read"),
        (
            lambda path: path.unlink(),
            "doesn't exist. Use a .safetensors file written by `internal-policy fit-lens`",
        ),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder. Use a .safetensors file"),
    ],
)
def test_a_damaged_file_gets_a_one_sentence_error(make, said, llama, tmp_path):
    path = tmp_path / "lens.safetensors"
    file.save(path, random_translators())
    make(path)
    with pytest.raises(InputError, match=said):
        file.load(path, llama)


@pytest.mark.parametrize("name", ["params.pt", "lens.bin", "lens.pkl"])
def test_a_pickle_is_rejected_with_the_command_that_converts_it(name, llama, tmp_path, theirs):
    path, tensors = theirs
    torch.save(tensors, tmp_path / name)
    with pytest.raises(InputError, match=r"is a pickle, which can run code when loaded\. Convert it") as error:
        file.load(tmp_path / name, llama)
    command = str(error.value).partition('python -c "')[2].partition('"`')[0]
    exec(command, {})  # the command in the error works in any folder
    assert (
        file.load((tmp_path / name).with_suffix(".safetensors"), llama).lens.at.keys()
        == file.load(path, llama).lens.at.keys()
    )


def test_messages_about_readouts_know_the_name_of_a_lens():
    assert LENSES.keys() == lens.KINDS.keys() == {*KIND_OF.values()}


# Jacobians


def jacobians(points=POINTS, d_model=32, **about) -> FittedLens:
    draw = torch.Generator().manual_seed(1)
    at = {point: Jacobian(torch.randn(d_model, d_model, generator=draw).double()) for point in points}
    return FittedLens(at, 3, about)


def test_a_jacobian_multiplies_the_hidden_state_before_the_norm(llama, input_ids):
    found, point = jacobians(), POINTS[1]
    state = llama(input_ids, output_hidden_states=True).hidden_states[1]
    expected = llama.lm_head(llama.model.norm(state @ found.at[point][0].T))
    logits = policy_logits(llama, point, lens.of(found, llama), input_ids=input_ids)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


def test_a_jacobian_lens_is_written_and_read_back(llama, tmp_path):
    file.save(tmp_path / "lens.safetensors", jacobians(model="tiny"))
    found = file.load(tmp_path / "lens.safetensors", llama)
    assert (found.name, found.lens.kind, found.lens.about) == ("jacobian", "jacobian", {"model": "tiny"})
    assert load_file(tmp_path / "lens.safetensors").keys() == {f"{point}.jacobian" for point in POINTS}
    assert all(torch.equal(found.lens.at[point][0], one[0]) for point, one in jacobians().at.items())


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            square(**{"0.resid_post.jacobian": torch.eye(32)}),
            "both a translator and a Jacobian for 0.resid_post. Keep one",
        ),
        (square(**{"1.resid_post.jacobian": torch.eye(32)}), "maps of one kind, but this one has tuned and jacobian"),
    ],
)
def test_a_lens_of_two_kinds_is_rejected(tensors, said, llama, tmp_path):
    save_file(tensors, tmp_path / "mixed.safetensors")
    with pytest.raises(InputError, match=said):
        file.load(tmp_path / "mixed.safetensors", llama)
