"""A schedule names the hook point that each step trains."""

import pytest

from internal_policy.errors import InputError
from internal_policy.models.hooks import HookPoint
from internal_policy.train.schedule import REST, Phase, first_internal, parse, phase_at


def test_a_phase_is_parsed_from_text():
    assert Phase.parse("5.resid_post:30") == Phase(HookPoint(5, "resid_post"), 30)


@pytest.mark.parametrize(
    "text",
    ["5.resid_post", "5.resid_post:0", "5.resid_post:-1", "5.nowhere:3", ":3", "5:3", "5.resid_post:" + "9" * 5000],
)
def test_an_invalid_phase_is_rejected(text):
    with pytest.raises(InputError, match=r"hook point|phase"):
        Phase.parse(text)


def test_phases_follow_one_another_and_end_with_the_whole_policy():
    phases = tuple(map(Phase.parse, ["0.mlp_out:1", "1.attn_out:2", "2.resid_post:1"]))
    assert [phase_at(phases, step)[0].name for step in range(6)] == [
        "0.mlp_out", "1.attn_out", "1.attn_out", "2.resid_post", "final", "final",
    ]  # fmt: skip


def test_without_phases_the_whole_policy_is_always_trained():
    assert phase_at((), 3) == (REST, 3)
    assert first_internal(()) is None


def test_a_schedule_goes_back_and_ends_with_the_whole_policy():
    phases = parse(["final:2", "1.resid_post@norm:1", " final:1", "0.mlp_out:1", "final"])
    assert [phase_at(phases, step)[0].name for step in range(6)] == [
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
        (["1.resid_post"], r"isn't a phase. Write HOOK POINT\[@READOUT\]\[\*WEIGHT\]:STEPS"),
        (["1.resid_post:2:3"], "isn't a phase"),
        (["1.resid_post:2.5"], "isn't a phase"),
        (["final*0.5:2"], "weights mix an internal policy with final"),
        (["1.resid_post*2:2"], "'2' isn't a weight"),
        (["1.resid_post*:2"], "'' isn't a weight"),
        (["1.resid_post*1-:2"], "'1-' isn't a weight"),
        (["1.resid_post*nan:2"], "'nan' isn't a weight"),
        (["1.resid_post*1-0.5-0:2"], "'1-0.5-0' isn't a weight"),
    ],
)
def test_an_invalid_schedule_is_rejected(texts, said):
    with pytest.raises(InputError, match=said):
        parse(texts)


def test_a_weight_moves_along_a_line_from_the_first_step_to_the_last():
    (phase,) = parse(["1.resid_post@norm*1-0.5:3"])
    assert [phase.weight(step) for step in range(3)] == [1.0, 0.75, 0.5]
    assert phase.name == "1.resid_post@norm*1-0.5"
    assert [Phase.parse("1.resid_post*0.3:2").weight(step) for step in range(2)] == [0.3, 0.3]
    assert Phase.parse("1.resid_post*0.3:1").name == "1.resid_post*0.3"
    assert Phase.parse("1.resid_post:2").weight(0) == 1.0


def test_a_phase_that_ends_early_moves_the_next_ones_forward():
    phases = parse(["0.mlp_out:4", "1.resid_post:3", "final:1"])
    assert [phase_at(phases, step, [2])[0].name for step in range(6)] == [
        "0.mlp_out", "0.mlp_out", "1.resid_post", "1.resid_post", "1.resid_post", "final",
    ]  # fmt: skip
    assert [phase_at(phases, step, [2, 3])[0].name for step in range(5)] == [
        "0.mlp_out", "0.mlp_out", "1.resid_post", "final", "final",
    ]  # fmt: skip
    assert phase_at(phases, 4, [2]) == (phases[1], 2)
    assert phase_at(phases, 4, [4]) == (phases[1], 0)  # where it ended anyway
