"""A view narrows a scan by readout, outcome and positions."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import rewarded
from hypothesis import given, settings
from hypothesis import strategies as st

from internal_policy import bundle, files
from internal_policy.errors import InputError
from internal_policy.look import statistics, view
from internal_policy.look.tokens import cells, quantiles
from internal_policy.look.view import View, about, absent, check, default, for_tokens, how, layers, means, rollouts
from internal_policy.measure.sites import WITH_FINAL
from internal_policy.scans import records, store

DEMO = bundle.DATA / "scans" / "demo-qwen3"


@pytest.fixture(scope="module")
def policies() -> pd.DataFrame:
    """All numbers of the demo scan."""
    return store.read(DEMO, "policies")


def test_a_scan_of_a_language_model_and_two_of_demo_models_are_bundled_whole():
    assert [folder.name for folder in bundle.scans()] == ["smollm2-135m", "demo-llama", "demo-qwen3"]
    assert [store.damaged(folder) for folder in bundle.scans()] == [[], [], []]


def test_the_scan_of_a_language_model_is_small_and_names_no_folder_of_the_machine_that_made_it():
    folder = bundle.DATA / "scans" / "smollm2-135m"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    record, asked = store.record(folder), store.asked(folder)
    assert record["model"] == record["asked"]["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    words = [*record["command"], *record["asked"].values(), *asked["asked"].values(), *record["asked"]["content"]]
    assert not [word for word in words if str(word).startswith(("/", "~"))]
    assert (record["selection"]["readouts"], record["selection"]["top_k"]) == (["raw", "norm"], 5)


def test_the_language_model_answered_the_prompts_beside_its_scan():
    written = [json.loads(line) for line in (bundle.DATA / "language" / "prompts.jsonl").read_text().splitlines()]
    rollouts = store.read(bundle.DATA / "scans" / "smollm2-135m", "rollouts")
    assert len(rollouts) == len(written) == 12
    for rollout, row in zip(rollouts.to_dict("records"), written, strict=True):
        assert rollout["problem"] == row.get("problem", "")
        assert row.get("text", rollout["response"]).endswith(rollout["response"])


def test_the_first_readout_is_the_default():
    view = default(DEMO)
    record = store.record(DEMO)
    found = about(view)
    assert view.readout == "raw"
    assert (found.model, found.rollouts, found.tokens, found.which) == ("demo-qwen3", 20, record["tokens"], "")
    assert (found.n_layers, found.d_vocab) == (8, 448)


def test_tokens_are_read_through_the_final_norm_where_it_was_measured(copied):
    assert for_tokens(DEMO).readout == "norm"
    record = store.record(copied)
    files.write_json(copied / store.RECORD, {**record, "selection": {**record["selection"], "readouts": ["raw"]}})
    assert for_tokens(copied).readout == "raw"


@pytest.mark.parametrize("readout", ["raw", "norm"])
def test_the_norm_after_the_final_norm_is_not_compared_with_the_others(readout):
    one = View(DEMO, readout)
    assert "final" not in set(means(one, "norm")["site"])
    assert "final" in set(means(one)["site"])
    assert cells(one, 0, "resid_post", "norm")["layer"].max() == 7
    for refused in (lambda: cells(one, 0, "final", "norm"), lambda: quantiles(one, "final", "norm")):
        with pytest.raises(InputError, match=r"There is no norm at final. Choose one of resid_pre"):
            refused()


@pytest.mark.parametrize("readout", ["raw", "norm"])
def test_means_over_all_tokens_are_those_of_the_policies_one_by_one(policies, readout):
    found = statistics.means(layers(View(DEMO, readout))).set_index(["layer", "site"])["mean"]
    rows = policies[policies["readout"] == readout]
    for site in WITH_FINAL:
        plain = rows.groupby("layer")[f"{site}.entropy"].mean().dropna()
        assert list(found.xs(site, level="site").index) == list(plain.index)
        assert found.xs(site, level="site").to_numpy() == pytest.approx(plain.to_numpy(), rel=1e-5, abs=1e-7)


def test_a_window_only_counts_its_own_tokens(policies):
    found = (
        statistics.changes(layers(View(DEMO, first=3, last=10)))
        .set_index(["change", "part", "layer"])["mean"]
        .sort_index()
    )
    rows = policies[(policies["readout"] == "raw") & policies["position"].between(3, 10)]
    total = (rows["mlp_out.entropy"] - rows["mlp_in.entropy"]).groupby(rows["layer"]).mean().dropna()
    norm = (rows["mlp_out.entropy"] - rows["mlp_out.entropy_at_input_norm"]).groupby(rows["layer"]).mean().dropna()
    assert found["mlp", "total"].to_numpy() == pytest.approx(total.to_numpy(), rel=1e-4)
    assert found["mlp", "norm"].to_numpy() == pytest.approx(norm.to_numpy(), rel=1e-4)


def test_a_window_of_all_positions_is_the_table_of_the_scan():
    summed, counted = layers(View(DEMO)), layers(View(DEMO, last=10**6))
    order = ["rollout", "layer", "site"]
    summed, counted = (frame.sort_values(order, ignore_index=True) for frame in (summed, counted))
    pd.testing.assert_frame_equal(summed, counted[summed.columns], check_dtype=False, rtol=1e-5, atol=1e-6)


@settings(max_examples=12, deadline=None)
@given(
    first=st.integers(0, 50),
    last=st.none() | st.integers(0, 60),
    readout=st.sampled_from(["raw", "norm"]),
    outcome=st.sampled_from(["all", "correct", "incorrect"]),
    measure=st.sampled_from(["entropy", "kl", "top1", "cosine"]),
)
def test_means_in_a_window_are_those_of_its_tokens_one_by_one(policies, first, last, readout, outcome, measure):
    view = View(DEMO, readout, outcome, first, last)
    shown = policies[(policies["readout"] == readout) & (policies["position"] >= first)]
    shown = shown if last is None else shown[shown["position"] <= last]
    rewards = store.read(DEMO, "rollouts").set_index("rollout")["reward"]
    kept = {"all": rewards >= 0, "correct": rewards >= 1, "incorrect": rewards < 1}[outcome]
    shown = shown[shown["rollout"].isin(rewards.index[kept])]
    if not len(shown):
        with pytest.raises(InputError, match="Widen the filter"):
            layers(view, measure)
        return
    found = layers(view, measure).set_index(["rollout", "layer", "site"])
    for site in found.index.unique("site"):
        own = shown[shown["layer"] == 8] if site == "final" else shown[shown["layer"] < 8]
        groups = own.groupby(["rollout", "layer"])
        assert found.xs(site, level="site")["tokens"].to_dict() == groups.size().to_dict()
        name = f"{site}.{'rank' if measure == 'top1' else measure}"
        if name in shown:
            values = (own[name] == 1).astype(float) if measure == "top1" else own[name].astype(float)
            plain = values.groupby([own["rollout"], own["layer"]]).mean()
            np.testing.assert_allclose(found.xs(site, level="site").loc[plain.index, measure], plain, rtol=1e-9)


def test_changing_a_table_leaves_the_view_as_it_was():
    found = layers(View(DEMO))
    found.loc[:, "entropy"] = 0.0
    assert layers(View(DEMO))["entropy"].min() > 0


def test_a_scan_that_was_measured_again_is_read_again(copied):
    before = layers(View(copied))
    for path in store.parts(copied, "layers"):
        table = pq.read_table(path)
        store.write_table(path, table.set_column(table.schema.get_field_index("norm"), "norm", table["entropy"]))
    record = records.read(copied / store.RECORD)
    record["files"] = {name: files.fingerprint(copied / name) for name in record["files"]}
    files.write_json(copied / store.RECORD, {name: value for name, value in record.items() if name != "checksum"})
    assert layers(View(copied))["norm"].equals(before["entropy"].rename("norm"))


def test_a_window_says_how_many_tokens_it_has():
    lengths = store.read(DEMO, "rollouts", ["response_ids"])["response_ids"].map(len)
    found = about(View(DEMO, first=30, last=49))
    assert found.tokens == int(np.clip(lengths - 30, 0, 20).sum())
    assert found.rollouts == int((lengths > 30).sum())
    assert found.which == "positions 30 to 49"


def test_responses_that_were_not_marked_are_neither_correct_nor_incorrect(copied):
    rewarded(copied, [1.0, 0.5, None, -1.0])
    counts = {outcome: about(View(copied, outcome=outcome)).rollouts for outcome in ("all", "correct", "incorrect")}
    assert counts == {"all": 20, "correct": 5, "incorrect": 10}


def test_correct_and_incorrect_responses_add_up_to_all():
    counts = {outcome: about(View(DEMO, outcome=outcome)) for outcome in ("all", "correct", "incorrect")}
    reward = store.read(DEMO, "rollouts", ["reward"])["reward"]
    assert counts["correct"].rollouts == int((reward == 1).sum()) > 0
    assert counts["correct"].tokens + counts["incorrect"].tokens == counts["all"].tokens
    kept = rollouts(View(DEMO, outcome="correct"))["rollout"]
    assert set(layers(View(DEMO, outcome="correct"))["rollout"]) == set(kept)


def test_a_filter_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match=r"no response tokens among positions from 9999. Widen the filter"):
        about(View(DEMO, first=9999))


def test_a_readout_that_was_not_measured_is_refused(copied):
    record = store.record(copied)
    files.write_json(copied / store.RECORD, {**record, "selection": {**record["selection"], "readouts": ["norm"]}})
    with pytest.raises(
        InputError, match=r"not measured with the readout 'raw', only with norm. Scan again with --readout"
    ):
        check(View(copied, "raw"))


def test_a_missing_lens_readout_suggests_scanning_with_the_lens():
    with pytest.raises(
        InputError, match=r"not measured with the readout 'tuned', only with raw and norm. Scan again with --lens"
    ):
        check(View(DEMO, "tuned"))


def test_readouts_have_names_on_screen():
    said = [how(name) for name in ("raw", "norm", "tuned", "jacobian", "my_own")]
    assert said[:2] == ["raw hidden states", "through the final norm"]
    assert said[2:] == ["through the tuned lens", "through the Jacobian lens", "through the my_own lens"]


def test_a_part_cut_short_is_named(copied):
    path = copied / "layers-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"layers-00001\.parquet is missing or cut short") as caught:
        layers(default(copied))
    assert f"Repair it with `internal-policy verify {copied} --repair`." in str(caught.value)


@pytest.mark.parametrize("last", [None, 10])
def test_the_table_of_a_view_only_has_its_readout(last):
    found = layers(View(DEMO, "norm", last=last))
    assert set(found["readout"]) == {"norm"}
    assert statistics.by_layer(found, "norm")["resid_post"].notna().sum() == 8


def altered(folder, **changes) -> View:
    """A copy of a scan whose record says that something else was measured."""
    record = records.read(folder / store.RECORD)
    dtype = changes.pop("dtype", record["dtype"])
    files.write_json(folder / store.RECORD, {**record, "dtype": dtype, "selection": {**record["selection"], **changes}})
    return View(folder)


@pytest.mark.parametrize(
    ("measure", "site", "said"),
    [
        ("cosine", "resid_post", "There is no cosine at resid_post. Choose one of attn_out, mlp_out."),
        ("kl", "final", "There is no kl at final. Choose one of resid_pre"),
        ("entropy", "nowhere", "There is no site 'nowhere'. Choose one of resid_pre"),
        ("entropy", "mlp_out", "mlp_out was not measured. Choose another site, or scan again with --sites all."),
        ("change", "resid_post", "resid_pre was not measured. Choose another site, or scan again with --sites all."),
        ("norm", "resid_post", "has no norm. Scan again with --measures all."),
    ],
)
def test_missing_measures_are_refused_with_a_working_remedy(copied, measure, site, said):
    shown = altered(copied, sites=["attn_in", "attn_out", "resid_post"], measures=["entropy", "cosine", "kl"])
    assert said in str(absent(shown, measure, site))


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        ("float16", "overflowed float16. Scan again with --dtype bfloat16 or --dtype float32."),
        ("bfloat16", "aren't finite in bfloat16. Scan again with --dtype float32."),
        ("float32", "aren't finite even in float32. Check the model's configuration and weights."),
    ],
)
def test_overflowed_numbers_are_reported_as_overflow(copied, dtype, said):
    shown = altered(copied, dtype=dtype)
    for path in copied.glob("layers-*.parquet"):
        pd.read_parquet(path).assign(entropy=np.nan).to_parquet(path)
    record = records.read(copied / store.RECORD)
    record["files"] = {name: files.fingerprint(copied / name) for name in record["files"]}
    files.write_json(copied / store.RECORD, record)
    for draw in (lambda: view.means(shown, "entropy"), lambda: view.changes(shown)):
        with pytest.raises(InputError, match=said):
            draw()


def test_a_change_to_the_table_of_layers_stays_outside():
    shown = View(DEMO)
    changed = view.layers(shown)
    changed["entropy"] = 0.0
    assert (view.layers(shown)["entropy"] > 0).any()
