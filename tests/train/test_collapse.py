"""A collapse is named as such."""

import pytest

from internal_policy.train.collapse import collapse


def rows(**changed: float) -> list[dict[str, float]]:
    """8 steps; the last 3 have other numbers."""
    usual = {"reward": 0.26, "cut": 0.1, "entropy": 1.3}
    return [{"step": step, **usual, **(changed if step > 5 else {})} for step in range(1, 9)]


@pytest.mark.parametrize("changed", [{"reward": 0.01}, {"cut": 1.0}, {"reward": 0.0, "cut": 1.0, "entropy": 0.01}])
def test_a_collapse_is_named_with_its_step_and_what_changed(changed):
    said = collapse(rows(**changed)) or ""
    assert said.startswith(
        "The policy has collapsed by step 8: between steps 1 to 3 and 6 to 8, the reward went from 0.26"
    )
    assert "--max-new-tokens" not in said


@pytest.mark.parametrize("changed", [{}, {"reward": 0.1}, {"cut": 0.6}, {"entropy": 0.0}])
def test_other_changes_are_no_collapse(changed):
    assert collapse(rows(**changed)) is None


def test_responses_that_were_always_cut_are_no_collapse():
    assert collapse([{**row, "cut": 1.0, "reward": 0.0} for row in rows()]) is None
    assert collapse(rows(reward=0.0)[-4:]) is None
