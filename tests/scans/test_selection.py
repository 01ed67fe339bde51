"""Every selected hidden state is read once, and unknown names get a one-sentence error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_policy.errors import InputError
from internal_policy.measure.metrics import MEASURES
from internal_policy.measure.sites import INPUT_OF, SITES, STREAM_OF
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.scans.selection import Selection, canonical, parse_layers, plan

PAPER = ("attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post")
"""The sites of the paper's figures."""


def some(of):
    return st.lists(st.sampled_from(of), min_size=1, unique=True).map(tuple)


LAYERS = st.lists(st.integers(0, 12), min_size=1, unique=True).map(lambda layers: tuple(sorted(layers)))
anything = given(
    layers=LAYERS, sites=some(SITES), measures=some(MEASURES).map(lambda names: tuple({*names, "entropy"}))
)


# layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0", (0,)),
        ("-1", (23,)),
        ("-24", (0,)),
        ("all", tuple(range(24))),
        ("0,5,10-13,-1", (0, 5, 10, 11, 12, 13, 23)),
        (" 3 , 1 ", (1, 3)),
        ("5,5,4-6,-19", (4, 5, 6)),
        ("7-7", (7,)),
        ("0-23", tuple(range(24))),
    ],
)
def test_layers_are_parsed(text, layers):
    assert parse_layers(text, 24) == layers


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-", "--1", "1,,2", "1,", "-3-1", "-3--1", "1--2", "1-2-3", "0.5", "ALL", "1:3", "9" * 5000]
)
def test_text_that_is_not_a_list_of_layers_is_rejected(text):
    with pytest.raises(
        InputError, match=r"in --layers isn't a layer or range\. Write layers such as 0,5,10-20,-1 or all\."
    ):
        parse_layers(text, 24)


@pytest.mark.parametrize("text", ["24", "-25", "0-24", "9-3", "0,99"])
def test_layers_that_the_model_lacks_are_rejected(text):
    with pytest.raises(InputError, match=r"--layers has .*, but the model's layers are 0 to 23\."):
        parse_layers(text, 24)


@given(st.sets(st.integers(0, 23), min_size=1))
def test_any_set_of_layers_can_be_written_as_text(layers):
    text = ",".join(str(layer if layer % 2 else layer - 24) for layer in layers)
    assert parse_layers(text, 24) == tuple(sorted(layers))


# selections


@pytest.mark.parametrize(
    ("what", "given", "sentence"),
    [
        ("sites", ("attn_out", "attn"), r"There is no site 'attn'\. Choose from resid_pre, attn_in, .*, resid_post\."),
        ("sites", ("final",), r"There is no site 'final'"),  # it is always measured
        ("measures", ("entropi",), r"There is no measure 'entropi'\. Choose from entropy, logprob, .*\."),
        ("sites", (), r"No site is selected\. Choose from resid_pre, .*\."),
        ("readouts", (), r"No readout is selected"),
        ("measures", (), r"No measure is selected"),
        ("layers", (), r"Select at least one layer"),
        ("top_k", -1, r"a top-k of 0 or more"),
    ],
)
def test_unknown_names_are_rejected(what, given, sentence):
    with pytest.raises(InputError, match=sentence):
        Selection(**{"layers": (0,), what: given})


@pytest.mark.parametrize(
    ("site", "measure", "top_k"),
    [("resid_post", "cosine", 5), ("attn_in", "entropy_at_input_norm", 5), ("mlp_out", "topk", 0)],
)
def test_measures_that_exist_at_none_of_the_sites_are_rejected(site, measure, top_k):
    with pytest.raises(InputError, match=rf"Nothing to measure: there is no {measure} at {site}\."):
        Selection((0,), (site,), measures=(measure,), top_k=top_k)


@pytest.mark.parametrize(
    ("site", "missing"),
    [
        ("resid_pre", {"entropy_at_input_norm", "cosine"}),
        ("attn_in", {"entropy_at_input_norm", "cosine"}),
        ("attn_out", set()),
        ("resid_mid", {"entropy_at_input_norm", "cosine"}),
        ("mlp_in", {"entropy_at_input_norm", "cosine"}),
        ("mlp_out", set()),
        ("resid_post", {"cosine"}),
        ("final", {"entropy_at_input_norm", "cosine", "kl"}),
    ],
)
def test_a_site_has_only_the_measures_defined_there(site, missing):
    assert Selection((0,)).names(site) == [name for name in MEASURES if name not in missing]


def test_a_site_has_only_the_selected_measures():
    assert Selection((0,), measures=("cosine", "entropy")).names("attn_out") == ["entropy", "cosine"]


def test_a_top_k_of_0_keeps_no_likeliest_tokens():
    assert "topk" not in Selection((0,), top_k=0).names("attn_out")


# plans


def test_a_layers_input_is_the_output_of_the_layer_before():
    assert canonical(5, "resid_pre") == HookPoint(4, "resid_post")


def test_the_first_layers_input_is_its_own():
    assert canonical(0, "resid_pre") == HookPoint(0, "resid_pre")


@pytest.mark.parametrize("n_layers", [1, 2, 45])
def test_the_papers_sites_need_5_products_per_layer_plus_2(n_layers):
    sites = ("resid_pre", *PAPER)
    assert plan(Selection(tuple(range(n_layers)), sites)).unembedded == 5 * n_layers + 2


@pytest.mark.parametrize("n_layers", [1, 2, 45])
def test_all_sites_need_6_products_per_layer_plus_2(n_layers):
    planned = plan(Selection(tuple(range(n_layers))))
    assert planned.unembedded == len(planned.points) == 6 * n_layers + 2


def test_entropies_alone_need_no_other_hidden_states():
    planned = plan(Selection((3,), ("attn_out", "resid_post"), measures=("entropy",)))
    assert planned.points == (FINAL, HookPoint(3, "attn_out"), HookPoint(3, "resid_post"))
    assert (planned.inputs, planned.streams, planned.unembedded) == ((), (), 3)


def test_states_for_norms_and_cosines_are_read_but_not_unembedded():
    planned = plan(Selection((3,), ("attn_out", "mlp_out")))
    assert planned.unembedded == 3
    assert set(planned.points[3:]) == {
        HookPoint(3, "attn_in"),
        HookPoint(3, "mlp_in"),
        HookPoint(2, "resid_post"),
        HookPoint(3, "resid_mid"),
    }


@anything
def test_each_hidden_state_is_read_once(layers, sites, measures):
    points = plan(Selection(layers, sites, measures=measures)).points
    assert len(set(points)) == len(points)
    assert not [point for point in points if point.site == "resid_pre" and point.layer > 0]


@anything
def test_final_comes_first(layers, sites, measures):
    assert plan(Selection(layers, sites, measures=measures)).points[0] == FINAL


@anything
def test_every_selected_site_is_unembedded(layers, sites, measures):
    selection = Selection(layers, sites, measures=measures)
    planned = plan(selection)
    for site in selection.sites:
        rows = planned.rows(selection.layers, site)
        assert [planned.points[row] for row in rows] == [canonical(layer, site) for layer in selection.layers]
        assert max(rows) < planned.unembedded


@anything
def test_the_norm_control_scales_the_first_points_to_their_own_inputs(layers, sites, measures):
    selection = Selection(layers, sites, measures=measures)
    planned = plan(selection)
    wanted = [site for site in INPUT_OF if site in selection.sites and "entropy_at_input_norm" in selection.measures]
    assert len(planned.inputs) == len(wanted) * len(selection.layers)
    for point, row in zip(planned.points[1:], planned.inputs, strict=False):
        assert planned.points[row] == canonical(point.layer, INPUT_OF[point.site])


@anything
def test_cosines_compare_modules_with_the_stream_they_are_added_to(layers, sites, measures):
    selection = Selection(layers, sites, measures=measures)
    planned = plan(selection)
    wanted = [site for site in STREAM_OF if site in selection.sites and "cosine" in selection.measures]
    assert len(planned.streams) == len(wanted) * len(selection.layers)
    for module, stream in planned.streams:
        point = planned.points[module]
        assert planned.points[stream] == canonical(point.layer, STREAM_OF[point.site][0])


def test_a_parallel_ffn_is_compared_with_the_stream_that_both_modules_read():
    sites = tuple(site for site in SITES if site != "resid_mid")
    planned = plan(Selection((3,), sites), {3: sites})
    assert all(point.site != "resid_mid" for point in planned.points)
    compared = {planned.points[module]: planned.points[stream] for module, stream in planned.streams}
    before = canonical(3, "resid_pre")
    assert compared == {HookPoint(3, "attn_out"): before, HookPoint(3, "mlp_out"): before}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": (1, 0, 1)}, "Layer 1 is listed twice"),
        ({"layers": (0,), "sites": ("mlp_out", "mlp_out")}, "Site mlp_out is listed twice"),
        ({"layers": (0,), "measures": ("kl", "norm", "kl")}, "Measure kl is listed twice"),
    ],
)
def test_duplicate_selections_are_rejected(given, said):
    with pytest.raises(InputError, match=said):
        Selection(**given)
