"""The table of the lens: what it says, and how it is drawn."""

import pandas as pd
import pytest

from internal_policy.look import lens
from internal_policy.look.lens import LensTable

ABOUT = {"model": "m", "text": "The capital of France is", "site": "resid_post", "readout": "norm"}


def made(ranks, position: int = 4, token: str = " a", read: str = " is") -> pd.DataFrame:
    """Rows of one position whose target has these ranks, the last of them in the model's own policy."""
    n = len(ranks)
    return pd.DataFrame(
        {
            "position": position,
            "read": read,
            "layer": range(n),
            "point": [*(f"{layer}.resid_post" for layer in range(n - 1)), "final"],
            "token": [" Paris" if rank == 1 else token for rank in ranks],
            "probability": 0.5,
            "entropy": 1.25,
            "kl": 0.0,
            "target": " Paris",
            "target_probability": 0.0001,
            "target_rank": pd.array(ranks, dtype="Int64"),
            "top_tokens": [[" a", " b"]] * n,
            "top_ids": [[1, 2]] * n,
            "top_probabilities": [[0.5, 0.25]] * n,
        }
    )


def table(*frames: pd.DataFrame) -> LensTable:
    frame = pd.concat(frames, ignore_index=True)
    shown = LensTable(frame)
    shown.attrs.update(ABOUT, n_layers=int(frame["layer"].max()))
    return shown


@pytest.mark.parametrize(
    ("ranks", "first", "sentence"),
    [
        ([5, 3, 1, 1], 2, '" Paris" is the top token from layer 2 on (layers 0 to 2).'),
        ([5, 1, 2, 1, 1], 3, '" Paris" is the top token from layer 3 on (layers 0 to 3).'),
        ([1, 1, 1], 0, '" Paris" is the top token in every layer (layers 0 to 1).'),
        (
            [1, 5, 1, 1, 1234, 7],
            None,
            '" Paris" is the top token in layers 0, 2 and 3, but rank 1,234 in the last layer (layers 0 to 4).',
        ),
        ([9, 1, 2, 2], None, '" Paris" is the top token in layer 1, but rank 2 in the last layer (layers 0 to 2).'),
        ([9, 1, None, 2], None, '" Paris" is the top token in layer 1, but not in the last layer (layers 0 to 2).'),
        ([9, 4, 5, 1], None, '" Paris" is never the top token in layers 0 to 2; its best rank is 4, in layer 1.'),
        ([None, None, None], None, 'The rank of " Paris" is unknown: the policies of all layers are NaN.'),
    ],
)
def test_the_sentence_says_where_the_target_becomes_the_top_token(ranks, first, sentence):
    assert lens.verdict(table(made(ranks))) == sentence
    assert lens.from_layer(table(made(ranks))) == first


def test_the_sentence_is_about_the_last_position():
    assert "from layer 1 on" in lens.verdict(table(made([1, 1, 1], position=3), made([2, 1, 1])))


def test_the_table_has_a_row_a_layer_and_one_for_the_model():
    shown = lens.by_layer(table(made([1, 1, 1], position=3), made([2, 1, 1])))
    assert shown["layer"].to_list() == ["0", "1", "model"]
    assert shown['rank of " Paris"'].to_list() == ["2", "1", "1"]


def test_the_tokens_after_the_top_one_are_listed_by_layer():
    assert lens.others(table(made([2, 1, 1]))) == [['" b" 0.250']] * 3
    assert "then" in repr(table(made([2, 1, 1])))


def test_a_missing_rank_is_printed_as_unknown():
    assert lens.by_layer(table(made([None, 1])))['rank of " Paris"'].to_list() == ["-", "1"]


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1.000"), (0.0005, "0.001"), (0.0004, "4e-04"), (1e-15, "1e-15"), (0.0, "0.000")]
)
def test_small_probabilities_keep_their_power_of_ten(value, text):
    assert lens.probability(value) == text


def test_it_prints_as_the_table_and_the_sentence():
    printed = repr(table(made([5, 1, 1])))
    assert printed.startswith('Next token after "The capital of France is"\nm, resid_post, through the final norm\n')
    assert printed.endswith('" Paris" is the top token from layer 1 on (layers 0 to 1).')


def test_a_notebook_draws_the_grid_only_where_there_are_several_positions():
    assert "rgba" not in table(made([2, 1, 1]))._repr_html_()
    page = table(made([2, 1, 1], position=3, read=" France"), made([2, 1, 1]))._repr_html_()
    assert page.count("rgba") == 6
    assert "·France" in page


def test_hostile_tokens_are_drawn_as_text():
    bad = '<script>alert(1)</script>"\x1b[2J\u202e'
    page = table(made([2, 2, 2], position=3, token=bad, read=bad), made([2, 2, 2], token=bad))._repr_html_()
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_a_part_of_it_is_a_plain_frame():
    part = table(made([2, 1, 1])).query("target_rank == 1")
    assert type(part) is pd.DataFrame
    assert len(part) == 2


def test_a_quotation_mark_in_a_token_is_escaped():
    assert lens.quote('say "') == '"say \\""'
