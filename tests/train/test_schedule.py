"""A schedule names the hook point that each step trains."""

import pytest

from internal_policy.errors import InputError
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.train.schedule import Phase, point_at


def test_a_phase_is_parsed_from_text():
    assert Phase.parse("5.resid_post:30") == Phase(HookPoint(5, "resid_post"), 30)


@pytest.mark.parametrize("text", ["5.resid_post", "5.resid_post:0", "5.resid_post:-1", "5.nowhere:3", ":3", "5:3"])
def test_an_invalid_phase_is_rejected(text):
    with pytest.raises(InputError, match=r"hook point|phase"):
        Phase.parse(text)


def test_phases_follow_one_another_and_end_with_the_whole_policy():
    phases = tuple(map(Phase.parse, ["0.mlp_out:1", "1.attn_out:2", "2.resid_post:1"]))
    assert [str(point_at(phases, step)) for step in range(6)] == [
        "0.mlp_out", "1.attn_out", "1.attn_out", "2.resid_post", "final", "final",
    ]  # fmt: skip


def test_without_phases_the_whole_policy_is_always_trained():
    assert point_at((), 0) == FINAL
