"""Hidden states are read live, only by the thread that asked, and no hook is left behind."""

import inspect
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate.utils import compile_regions
from conftest import FEW, all_points, hook_count, read
from hypothesis import given
from hypothesis import strategies as st

from internal_policy.errors import InputError
from internal_policy.measure.sites import SITES
from internal_policy.models.families import multiplier, sites_of
from internal_policy.models.hooks import FINAL, HookPoint, hooked
from internal_policy.models.modules import decoder_layers
from internal_policy.models.policy import policy_logits
from internal_policy.models.rows import FAMILIES


def nothing(point, hidden):
    pass


def test_a_visitor_gets_one_state_per_position(model, input_ids):
    assert {state.shape for state in read(model, all_points(model), input_ids).values()} == {(2, 11, 32)}


def test_a_visitor_gets_tensors_on_the_graph(model, input_ids):
    states = read(model, all_points(model), input_ids)
    embedding = model.get_input_embeddings().weight
    for state in states.values():
        (gradient,) = torch.autograd.grad(state.pow(2).sum(), embedding, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("family", [name for name in FEW if not FAMILIES[name].multiplier])
def test_the_loss_flows_through_the_visited_state(model, input_ids):
    point = HookPoint(1, "attn_out")
    seen = []
    with hooked(model, [point], lambda _, hidden: seen.append(hidden)):
        loss = model(input_ids).logits.pow(2).sum()
    (gradient,) = torch.autograd.grad(loss, seen[0])
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("family", ["granite"])
@pytest.mark.parametrize(("site", "module"), [("attn_out", "self_attn"), ("mlp_out", "mlp")])
def test_multiplied_outputs_are_visited_multiplied_and_on_the_graph(model, input_ids, site, module):
    point, seen, written = HookPoint(1, site), [], []
    inside = model.get_submodule(f"model.layers.1.{module}")
    inside.register_forward_hook(lambda _, __, out: written.append(out[0] if isinstance(out, tuple) else out))
    with hooked(model, [point], lambda _, hidden: seen.append(hidden)):
        model(input_ids)
    assert torch.equal(seen[0], written[0] * multiplier(model.config, site))
    (gradient,) = torch.autograd.grad(seen[0].sum(), written[0])
    assert (gradient == 0.22).all()


def test_hooks_do_not_change_the_pass(model, input_ids):
    alone = model(input_ids).logits
    with hooked(model, all_points(model), nothing):
        assert torch.equal(model(input_ids).logits, alone)


def test_a_point_listed_twice_is_visited_once(llama, input_ids):
    seen = []
    with hooked(llama, [FINAL, FINAL], lambda point, _: seen.append(point)):
        llama(input_ids)
    assert seen == [FINAL]


def test_every_pass_is_visited(llama, input_ids):
    seen = []
    with hooked(llama, [FINAL], lambda _, hidden: seen.append(hidden.shape)):
        llama(input_ids)
        llama(input_ids[:1, :3])
    assert seen == [(2, 11, 32), (1, 3, 32)]


def test_nothing_is_visited_after_closing(llama, input_ids):
    seen = []
    with hooked(llama, [FINAL], lambda point, _: seen.append(point)):
        pass
    llama(input_ids)
    assert seen == []


def test_an_inner_visitor_sees_its_own_passes_and_an_outer_one_sees_all(llama, input_ids):
    outer, inner = [], []
    with hooked(llama, [FINAL], lambda point, _: outer.append(str(point))):
        llama(input_ids)
        with hooked(llama, [HookPoint(0, "mlp_in")], lambda point, _: inner.append(str(point))):
            llama(input_ids)
        llama(input_ids)
    assert (outer, inner) == (["final"] * 3, ["0.mlp_in"])


def test_threads_on_a_shared_model_each_see_their_own_pass(model):
    points = all_points(model)
    texts = [torch.randint(5, 256, (1, 4 + n), generator=torch.Generator().manual_seed(n)) for n in range(4)]
    alone = [read(model, points, text) for text in texts]
    together = threading.Barrier(4)

    def work(text):
        seen = []
        with hooked(model, points, lambda point, hidden: seen.append((point, hidden))):
            together.wait()  # all four have their hooks on the model before the first pass
            for _ in range(3):
                model(text)
            together.wait()
        return seen

    with ThreadPoolExecutor(4) as pool:
        passes = list(pool.map(work, texts))
    for states, seen in zip(alone, passes, strict=True):
        assert len(seen) == 3 * len(points)
        assert max((hidden - states[point]).abs().max().item() for point, hidden in seen) == 0.0


def test_threads_on_a_shared_model_get_the_same_policies_as_alone(model):
    jobs = [
        (
            HookPoint(n % 3, sites_of(model.config)[n]),
            torch.randint(5, 256, (1, 4 + n), generator=torch.Generator().manual_seed(n)),
        )
        for n in range(4)
    ]
    alone = [policy_logits(model, point, input_ids=text) for point, text in jobs]
    together = threading.Barrier(4)

    def work(job):
        together.wait()
        return [policy_logits(model, job[0], input_ids=job[1]) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, jobs))
    assert all(torch.equal(logits, own) for own, many in zip(alone, found, strict=True) for logits in many)


def test_passes_in_another_thread_are_not_seen(llama, input_ids):
    seen = []
    with hooked(llama, [FINAL], lambda _, hidden: seen.append(hidden.shape)), ThreadPoolExecutor(1) as pool:
        pool.submit(llama, input_ids).result()
        llama(input_ids[:1, :3])
    assert seen == [(1, 3, 32)]


def test_passes_only_in_another_thread_are_an_error(llama, input_ids):
    sentence = r"1\.mlp_out was never visited because the model only ran in another thread"
    with (
        pytest.raises(InputError, match=sentence),
        hooked(llama, [HookPoint(1, "mlp_out")], nothing),
        ThreadPoolExecutor(1) as pool,
    ):
        pool.submit(llama, input_ids).result()


def compiled(model, how):
    """`model` with every layer compiled."""
    if how == "compile_regions":
        return compile_regions(model, backend="eager")
    for layer in decoder_layers(model):
        layer.compile(backend="eager")
    return model


@pytest.mark.parametrize("how", ["layer.compile", "compile_regions"])
def test_separately_compiled_layers_are_visited_like_any_other(llama, input_ids, how):
    points = all_points(llama)
    expected = read(llama, points, input_ids)
    each = compiled(llama, how)
    with torch.no_grad():
        each(input_ids)  # compiles them without hooks
        found = read(each, points, input_ids)
    assert list(found) == points
    for point in points:
        torch.testing.assert_close(found[point], expected[point], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("point", [FINAL, HookPoint(1, "attn_out")], ids=str)
def test_policies_can_be_read_with_a_compiled_unembedding(llama, input_ids, point):
    expected = policy_logits(llama, point, input_ids=input_ids)
    found = policy_logits(compiled(llama, "compile_regions"), point, input_ids=input_ids)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_compiled_code_runs_again_after_the_last_of_several_visits(llama, input_ids):
    seen = []
    counted = torch.compile(lambda x: x + 1, backend=lambda graph, _: seen.append(1) or graph)
    first, second = (hooked(llama, [FINAL], nothing) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    counted(torch.ones(2))
    assert not seen
    second.__exit__(None, None, None)
    counted(torch.ones(2))
    assert seen


def test_a_point_that_a_pass_does_not_reach_is_an_error(llama, input_ids):
    decoder_layers(llama)[1].forward = lambda hidden, **_: hidden
    sentence = r"visited 1\.attn_out 0 times instead of once"
    with pytest.raises(InputError, match=sentence), hooked(llama, [FINAL, HookPoint(1, "attn_out")], nothing):
        llama(input_ids)


def test_a_point_that_a_pass_reaches_twice_is_an_error(llama, input_ids):
    layer = decoder_layers(llama)[1]
    once = layer.forward
    layer.forward = lambda hidden, **options: once(once(hidden, **options), **options)
    with (
        pytest.raises(InputError, match=r"visited 1\.mlp_in 2 times"),
        hooked(llama, [HookPoint(1, "mlp_in")], nothing),
    ):
        llama(input_ids)


def test_hooked_without_a_pass_raises_nothing(llama):
    with hooked(llama, [FINAL], nothing):
        pass


@pytest.mark.parametrize("layer", [-1, 3, 100])
def test_a_layer_that_the_model_lacks_is_rejected(model, layer):
    sentence = rf"There is no hook point {layer}\.mlp_out: the model's layers are 0 to 2\."
    with pytest.raises(InputError, match=sentence), hooked(model, [HookPoint(layer, "mlp_out")], nothing):
        pass


def test_a_missing_layer_leaves_no_hooks(model):
    before = hook_count(model)
    with pytest.raises(InputError), hooked(model, [*all_points(model), HookPoint(3, "resid_pre")], nothing):
        pass
    assert hook_count(model) == before


def test_a_site_that_the_model_lacks_is_rejected():
    with pytest.raises(
        InputError, match=r"There is no hook point 5\.attn\. .* or final\. .* the sites are resid_pre, .*, resid_post\."
    ):
        HookPoint(5, "attn")


def test_final_cannot_have_a_layer():
    with pytest.raises(InputError, match=r"There is no hook point 5\.final\."):
        HookPoint(5, "final")


@given(layer=st.integers(0, 10**6), site=st.sampled_from(SITES))
def test_a_printed_hook_point_can_be_parsed(layer, site):
    assert HookPoint.parse(str(HookPoint(layer, site))) == HookPoint(layer, site)


def test_final_prints_as_a_name_that_can_be_parsed():
    assert HookPoint.parse(str(FINAL)) is FINAL


def test_a_hook_point_prints_as_layer_and_site():
    assert str(HookPoint(5, "attn_out")) == "5.attn_out"


@given(st.text(alphabet="0123456789.-_ adefilnoprstu", max_size=15))
def test_any_text_is_a_hook_point_or_a_one_sentence_error(text):
    layer, _, site = text.partition(".")
    if text == "final" or (layer.isdecimal() and site in SITES):
        assert HookPoint.parse(str(HookPoint.parse(text))) == HookPoint.parse(text)
    else:
        with pytest.raises(InputError, match=r"^Can't read .* LAYER\.SITE, such as 5\.attn_out, or final\. .*\.$"):
            HookPoint.parse(text)


@pytest.mark.parametrize("text", ["", "5", "attn_out", "attn_out.5", "-1.attn_out", "5.attn_out ", "5.final", "Final"])
def test_malformed_hook_points_are_rejected(text):
    with pytest.raises(InputError, match=f"Can't read '{re.escape(text)}' as a hook point"):
        HookPoint.parse(text)


def test_a_layer_of_thousands_of_digits_is_rejected():
    with pytest.raises(InputError, match=f"Can't read '{'9' * 60}' as a hook point"):
        HookPoint.parse("9" * 5000 + ".attn_out")


@pytest.mark.parametrize("point", [HookPoint(5, "attn_out"), FINAL], ids=str)
def test_parsing_a_hook_point_returns_it(point):
    assert HookPoint.parse(point) is point


def test_points_may_be_given_by_name(llama, input_ids):
    points = ["1.attn_out", HookPoint(2, "mlp_in"), "final"]
    assert list(read(llama, points, input_ids)) == [HookPoint(1, "attn_out"), HookPoint(2, "mlp_in"), FINAL]


def test_a_point_given_by_name_and_as_a_hook_point_is_visited_once(llama, input_ids):
    seen = []
    with hooked(llama, ["1.attn_out", HookPoint(1, "attn_out")], lambda point, _: seen.append(point)):
        llama(input_ids)
    assert seen == [HookPoint(1, "attn_out")]


def test_a_bad_name_is_rejected_before_any_hook_is_added(llama):
    before = hook_count(llama)
    with pytest.raises(InputError, match=r"Can't read '1\.attn'"), hooked(llama, ["1.attn"], nothing):
        pass
    assert hook_count(llama) == before


def test_a_string_instead_of_a_list_of_hook_points_is_rejected(llama):
    with (
        pytest.raises(InputError, match=r"must be a list, not .* Use \['5.attn_out'\]"),
        hooked(llama, "5.attn_out", print),
    ):
        pass


def test_a_number_is_not_a_hook_point():
    with pytest.raises(InputError, match="Can't read '5' as a hook point"):
        inspect.unwrap(HookPoint.parse.__func__)(HookPoint, 5)
