"""The lens agrees with policy_logits at every layer and position."""

from typing import Any

import pytest
import torch
from conftest import tiny_model

from internal_policy.errors import InputError
from internal_policy.lenses.next_token import numbers
from internal_policy.models.policy import as_policy, policy_logits
from internal_policy.scans.reader import reader_of

IDS = (3, 17, 41, 9, 100)


def next_token(model, ids, *given, **options):
    """The numbers of the lens for a model."""
    return numbers(reader_of(model), ids, *given, **options)


def logits(model, point, readout: Any = "norm") -> torch.Tensor:
    """The logits of a policy at each position of IDS, (seq, d_vocab)."""
    return policy_logits(model, point, readout, input_ids=torch.tensor([IDS])).detach()[0]


def test_the_last_row_is_the_models_own_policy(model):
    row = next_token(model, IDS).iloc[-1]
    own = model(torch.tensor([IDS])).logits.detach()[0, -1].softmax(-1)
    assert (row["layer"], row["point"]) == (model.config.get_text_config().num_hidden_layers, "final")
    assert row["top_ids"] == [int(own.argmax())]
    assert row["top_probabilities"][0] == pytest.approx(float(own.max()), rel=1e-5)


@pytest.mark.parametrize("readout", ["norm", "raw"])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_every_layer_has_the_top_token_and_entropy_of_its_policy(llama, site, readout):
    table = next_token(llama, IDS, site=site, readout=readout)
    for _, row in table[table["point"] != "final"].iterrows():
        policy = torch.distributions.Categorical(logits=logits(llama, row["point"], readout)[-1])
        assert row["top_ids"] == [int(policy.probs.argmax())]
        assert row["entropy"] == pytest.approx(float(policy.entropy()), rel=1e-4)


def test_the_target_is_the_models_own_top_token_unless_given(llama):
    own = int(logits(llama, "final")[-1].argmax())
    assert set(next_token(llama, IDS)["target"]) == {own}
    assert set(next_token(llama, IDS, target=7)["target"]) == {7}


def test_rank_and_probability_are_those_of_the_target(llama):
    row = next_token(llama, IDS, target=7).iloc[1]
    policy = logits(llama, "1.resid_post")[-1].softmax(-1)
    assert row["target_probability"] == pytest.approx(float(policy[7]), rel=1e-4)
    assert row["target_rank"] == int((policy > policy[7]).sum()) + 1


def test_the_target_changes_nothing_else(llama):
    others = ["top_ids", "entropy", "kl"]
    assert next_token(llama, IDS, target=7)[others].equals(next_token(llama, IDS, target=8)[others])


def test_earlier_positions_are_read_as_the_last_position_of_a_shorter_text(llama):
    whole = next_token(llama, IDS, all_positions=True)
    part = next_token(llama, IDS[:3], target=IDS[3])
    same = whole[whole["position"] == 2].reset_index(drop=True)
    assert same[["layer", "point", "top_ids", "target", "target_rank"]].equals(
        part[same.columns][["layer", "point", "top_ids", "target", "target_rank"]]
    )
    assert same["entropy"].to_numpy() == pytest.approx(part["entropy"].to_numpy(), rel=1e-5)


def test_all_positions_have_all_layers(llama):
    table = next_token(llama, IDS, all_positions=True)
    assert table.groupby("position")["layer"].apply(list).to_list() == [
        list(range(llama.config.num_hidden_layers + 1))
    ] * len(IDS)


def test_the_likeliest_tokens_are_in_order(llama):
    row = next_token(llama, IDS, top_k=3).iloc[0]
    policy = logits(llama, "0.resid_post")[-1].softmax(-1)
    assert row["top_ids"] == policy.topk(3).indices.tolist()
    assert row["top_probabilities"] == pytest.approx(policy.topk(3).values.tolist(), rel=1e-4)


def test_a_lens_is_a_readout(llama):
    def halved(hidden, _):
        return hidden / 2

    table = next_token(llama, IDS, readout=halved)
    policy = torch.distributions.Categorical(logits=logits(llama, "1.resid_post", "raw")[-1] / 2)
    assert table["entropy"][1] == pytest.approx(float(policy.entropy()), rel=1e-4)


def test_inside_as_policy_the_last_row_is_that_policy(llama):
    with as_policy(llama, "0.resid_post", "norm"):
        row = next_token(llama, IDS).iloc[-1]
    assert row["top_ids"] == [int(logits(llama, "0.resid_post")[-1].argmax())]


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ((), {}, "The text has no tokens"),
        ((999,), {}, "token id 999"),
        (IDS, {"site": "resid"}, "There is no site 'resid'"),
        (IDS, {"site": "resid_mid"}, "gpt_neox has no resid_mid"),
        (IDS, {"top_k": 0}, "top-k is 0"),
        (IDS, {"top_k": 10**6}, "top-k is 1000000"),
        ((1,) * 10**5, {}, "The text has 100000 tokens"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(ids, options, message):
    with pytest.raises(InputError, match=message):
        next_token(tiny_model("gpt_neox"), ids, **options)
