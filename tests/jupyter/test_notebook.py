"""Every object of the public API has a short text and a page of HTML that shows texts as text."""

import re

import pandas as pd
import pytest
import torch

import internal_policy as ip
from internal_policy.jupyter import notebook
from internal_policy.lenses.lens import FittedLens, Translator, of
from internal_policy.models.loaded import Loaded
from internal_policy.tasks.listing import IN_NOTEBOOK, SHOWN, Rollouts
from internal_policy.tasks.rollouts import Rollout

EVIL = "<script>alert(1)</script> $x$\u202e"


@pytest.fixture(scope="module")
def demo() -> Loaded:
    return ip.load("demo-qwen3")


def rollout(text: str = "47 + 385: 432", reward: float | None = 1.0, finished: bool = True) -> Rollout:
    return Rollout(
        "What is\n47 + 385?", "432", 0, (1, 2, 3), (4, 5), text, reward, finished, (-0.5, -0.25), {EVIL: 2.0}
    )


def lens() -> FittedLens:
    translator = Translator(torch.zeros(128, 128), torch.zeros(128))
    points = [ip.HookPoint(layer, "resid_post") for layer in range(3)]
    return FittedLens(dict.fromkeys(points, translator), 8, {"model": EVIL})


OBJECTS = {
    "load": lambda demo: demo,
    "lens of a text": lambda demo: ip.lens(demo.model, demo.tokenizer, EVIL),
    "grid of a text": lambda demo: ip.lens(demo.model, demo.tokenizer, EVIL, all_positions=True),
    "generate": lambda demo: ip.generate(demo.model, demo.tokenizer, [EVIL], max_new_tokens=2),
    "rollout": lambda _: rollout(EVIL),
    "scan": lambda demo: ip.scan(
        demo.model, demo.tokenizer, ["<b>7"], layers=[0], readouts=["raw"], measures=["entropy"]
    ),
    "view": lambda _: ip.open_scan("demo-qwen3").view(readout="norm"),
    "check": lambda _: ip.open_scan("demo-qwen3").check(),
    "ablation": lambda _: ip.open_scan("demo-qwen3").ablation(),
    "figures": lambda _: ip.open_scan("demo-qwen3").plot,
    "alignment": lambda _: ip.open_alignment("demo-qwen3-alignment"),
    "run": lambda _: ip.open_run("experiments/bupo"),
    "fitted lens": lambda _: lens(),
    "readout": lambda demo: of(lens(), demo[0], EVIL),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_has_a_page_without_scripts_and_a_short_text(name, demo):
    shown = OBJECTS[name](demo)
    page = shown._repr_html_()
    assert page.startswith('<div class="mathjax_ignore tex2jax_ignore">')
    assert not re.search(r"<script|https?:|src=|url\(|#fff|white;|black", page)  # it takes the colours of the page
    text = repr(shown)
    assert "\u202e" not in text
    assert "tensor(" not in text
    assert len(text) < 5000


def test_a_response_of_another_direction_stays_in_its_cell():
    assert "unicode-bidi:isolate" in notebook.facts({"response": EVIL})
    assert "&lt;script&gt;" in notebook.facts({EVIL: EVIL})


def test_a_long_text_is_cut_in_a_cell():
    assert "x" * (notebook.LONGEST - 1) + "…<" in notebook.rows(["a"], [["x" * 1000]])


def test_rollouts_print_as_a_line_each_with_reward_problem_and_response():
    shown = Rollouts([rollout(), rollout("no", None, finished=False)])
    first, one, other = repr(shown).split("\n")
    assert first == "<2 rollouts, mean reward 1.00, 1 cut at the length limit, 4 tokens>"
    assert one.split() == ["0", "1", r"What", r"is\n47", "+", "385?", "47", "+", "385:", "432"]
    assert other.split()[:2] == ["1", "-"]


def test_many_rollouts_are_counted_and_the_first_ones_shown():
    shown = Rollouts([rollout()] * (IN_NOTEBOOK + 1))
    assert repr(shown).endswith(f"… and {IN_NOTEBOOK + 1 - SHOWN} more")
    assert f"The first {IN_NOTEBOOK} of {IN_NOTEBOOK + 1}." in shown._repr_html_()


def test_rollouts_are_a_list_and_a_frame():
    shown = Rollouts([rollout(), rollout()])
    assert shown == [rollout(), rollout()]
    assert isinstance(shown[:1], Rollouts)
    assert shown[0] == rollout()
    assert list(pd.DataFrame(shown)["reward"]) == [1.0, 1.0]
    assert repr(Rollouts()) == "<0 rollouts, 0 tokens>"


def test_a_rollout_prints_without_its_token_ids():
    assert repr(rollout()).startswith("Rollout(problem='What is\\n47 + 385?', answer='432', sample=0, response=")
    assert "prompt_ids" not in repr(rollout())


def test_a_loaded_model_is_a_pair_that_prints_what_was_loaded(demo):
    model, tokenizer = demo
    assert isinstance(demo, Loaded)
    assert demo == (model, tokenizer)
    assert repr(demo) == "<demo-qwen3: qwen3, 8 layers, 1,632,896 parameters, bfloat16 on cpu>"
    assert demo.facts()["sites"].startswith("resid_pre, attn_in")


def test_the_ablation_of_a_scan_has_the_means_of_its_table():
    found = ip.open_scan("demo-qwen3").ablation()
    means = found.means().query("measure == 'kl' and module == 'layer' and replacement == 'zero'")
    assert means.set_index("layer")["mean"].idxmax() == 0
    assert set(found.correlations()["module"]) == {"layer", "attn", "mlp"}
    assert found.rewards().empty
    assert found.plot().to_dict()["layout"]["meta"]["title"]
    assert "layer 0" in found.sentences()[0]


def test_a_scan_in_memory_has_no_ablation(demo):
    with pytest.raises(ip.InputError, match="A scan in memory has no ablation"):
        ip.scan(demo.model, demo.tokenizer, ["47 + 385"], layers=[0], readouts=["raw"]).ablation()
