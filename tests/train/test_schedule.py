"""A schedule names the hook point that each step trains."""

import pytest

from internal_policy.errors import InputError
from internal_policy.models.hooks import HookPoint
from internal_policy.train.schedule import REST, Phase, first_internal, parse, phase_at


def test_a_phase_is_parsed_from_text():
    assert Phase.parse("5.resid_post:30") == Phase(HookPoint(5, "resid_post"), 30)


@pytest.mark.parametrize("text", ["5.resid_post", "5.resid_post:0", "5.resid_post:-1", "5.nowhere:3", ":3", "5:3"])
def test_an_invalid_phase_is_rejected(text):
    with pytest.raises(InputError, match=r"hook point|phase"):
        Phase.parse(text)


def test_phases_follow_one_another_and_end_with_the_whole_policy():
    phases = tuple(map(Phase.parse, ["0.mlp_out:1", "1.attn_out:2", "2.resid_post:1"]))
    assert [phase_at(phases, step).name for step in range(6)] == [
        "0.mlp_out", "1.attn_out", "1.attn_out", "2.resid_post", "final", "final",
    ]  # fmt: skip


def test_without_phases_the_whole_policy_is_always_trained():
    assert phase_at((), 0) == REST
    assert first_internal(()) is None


def test_a_schedule_goes_back_and_ends_with_the_whole_policy():
    phases = parse(["final:2", "1.resid_post@norm:1", " final:1", "0.mlp_out:1", "final"])
    assert [phase_at(phases, step).name for step in range(6)] == [
        "final", "final", "1.resid_post@norm", "final", "0.mlp_out", "final",
    ]  # fmt: skip
    assert first_internal(phases) == Phase(HookPoint(1, "resid_post"), 1, "norm")
    assert parse(["final"]) == parse([]) == ()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["final", "1.resid_post:2"], "must be the last phase"),
        (["1.resid_post:2", ""], "'' isn't a phase"),
        (["1.resid_post@tuned:2"], "there is no readout 'tuned'. Use raw or norm"),
        (["1.resid_post@:2"], "there is no readout ''"),
        (["final@norm:2"], "final has no readout"),
        (["1.resid_post"], r"isn't a phase. Write HOOK POINT\[@READOUT\]:STEPS"),
        (["1.resid_post:2:3"], "isn't a phase"),
        (["1.resid_post:2.5"], "isn't a phase"),
    ],
)
def test_an_invalid_schedule_is_rejected(texts, said):
    with pytest.raises(InputError, match=said):
        parse(texts)
