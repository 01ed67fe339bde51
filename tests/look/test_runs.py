"""Training runs are listed, opened, checked and refused."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import run_catalogue, runs, theme
from internal_policy.look.run import SHOWN, Run, open_run


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundle, "DATA", tmp_path / "data")
    return tmp_path


def scanned(layer: int, site: str, entropy: float, control: float = np.nan, kl: float = np.nan, step: int = 0):
    return {"step": step, "layer": layer, "site": site, "entropy": entropy, "entropy_at_input_norm": control, "kl": kl}


FRAME = pd.DataFrame(
    [
        scanned(0, "resid_pre", 6.0),
        scanned(0, "mlp_in", 1.0),
        scanned(0, "mlp_out", 3.0, 2.5),
        scanned(0, "resid_post", 4.0, 4.5),
        scanned(1, "resid_pre", 4.0),
        scanned(1, "resid_post", 1.0, 3.0, 0.5),
        scanned(2, "final", 0.5, kl=0.25),
    ]
)


def steps(*targets: str) -> pd.DataFrame:
    phase = ["final" if target == "final" else "internal" for target in targets]
    return pd.DataFrame({"step": range(1, len(targets) + 1), "reward": 0.5, "phase": phase, "target": targets})


def write(folder, metrics: pd.DataFrame | None = None):
    folder.mkdir(parents=True)
    (steps("final") if metrics is None else metrics).to_parquet(folder / runs.METRICS)
    return folder


def test_entropy_changes_are_after_minus_before_and_split_by_the_norm_control():
    names = ["change", "change_direction", "change_norm"]
    found = runs.with_changes(FRAME)[names].set_axis(pd.MultiIndex.from_frame(FRAME[["layer", "site"]]))
    rows = {key: row.tolist() for key, row in found.dropna().iterrows()}
    assert rows == {
        (0, "mlp_out"): [2.0, 1.5, 0.5],
        (0, "resid_post"): [-2.0, -1.5, -0.5],
        (1, "resid_post"): [-3.0, -1.0, -2.0],
    }


def test_each_step_has_its_own_changes():
    later = FRAME.assign(step=5, entropy=FRAME["entropy"] * 2)
    found = runs.with_changes(pd.concat([FRAME, later])).set_index(["step", "layer", "site"])["change"]
    assert (found[0, 1, "resid_post"], found[5, 1, "resid_post"]) == (-3.0, -6.0)


def test_without_entropy_there_are_no_changes():
    assert runs.measures(runs.with_changes(FRAME[["step", "layer", "site", "kl"]])) == ["kl"]
    assert "change_norm" not in runs.with_changes(FRAME.drop(columns="entropy_at_input_norm"))


def test_measures_and_sites_without_values_are_not_offered():
    found = runs.with_changes(FRAME.assign(cosine=np.nan))
    assert "cosine" not in runs.measures(found)
    assert runs.sites(found, "change") == ["resid_post", "mlp_out"]
    assert runs.sites(found, "kl") == ["resid_post"]
    assert runs.sites(found[found["layer"] != 1], "kl") == ["final"]


def test_every_measure_of_a_run_has_a_label():
    for measure in runs.measures(runs.with_changes(FRAME.assign(norm=1.0, logprob=-1.0, cosine=0.5))):
        assert theme.label(measure, theme.WHILE_TRAINING)
    assert "trained layer" in theme.label("kl", theme.WHILE_TRAINING)
    assert "trained layer" not in theme.label("kl")


def test_the_trained_layer_is_the_first_target():
    assert runs.trained(steps("3.resid_post", "5.resid_post", "final"), FRAME) == 3


def test_the_trained_layer_of_plain_grpo_is_the_one_it_watches():
    assert runs.trained(steps("final"), FRAME) == 0
    assert runs.trained(steps("final"), FRAME[FRAME["site"] == "final"]) == 1
    assert runs.trained(steps("final"), FRAME.assign(kl=np.nan)) is None
    assert runs.trained(steps("final"), FRAME.drop(columns="kl")) is None


def test_the_caption_names_steps_phases_and_scans():
    said = runs.caption("one", steps("3.resid_post", "3.resid_post", "final"), FRAME)
    assert said == "one · 3 steps, 2 on 3.resid_post · 1 scan of the same responses"
    assert runs.caption("two", steps("final")) == "two · 1 step"


def test_runs_in_the_cache_come_first_newest_first(root):
    old, new = (write(root / "cache" / "runs" / name) for name in ("old", "new"))
    os.utime(old, (1, 1))
    bundled = write(root / "data" / "experiments" / "bupo")
    assert [*runs.listed().items()] == [("runs/new", new), ("runs/old", old), ("experiments/bupo", bundled)]
    assert runs.find("experiments/bupo") == bundled
    assert runs.find(str(root)) == root


def made(folder) -> Run:
    """A run with its four tables."""
    folder.mkdir()
    for name, frame in TABLES.items():
        frame.to_parquet(folder / name)
    return open_run(folder)


def test_a_run_has_its_four_tables(root):
    run = made(root / "run")
    pd.testing.assert_frame_equal(run.metrics(), TABLES[runs.METRICS])
    pd.testing.assert_frame_equal(run.dynamics(), runs.with_changes(FRAME))
    pd.testing.assert_frame_equal(run.pass_at_k(), TABLES[runs.PASS_AT_K])
    pd.testing.assert_frame_equal(run.exams(), TABLES[runs.EXAMS].assign(reward=[np.nan, 0.5]))
    assert repr(run) == "<Run run · 2 steps, 1 on 1.resid_post>"


def test_the_reward_beside_an_exam_is_the_mean_since_the_exam_before():
    metrics = steps(*["final"] * 6).assign(reward=[0.0, 1.0, 0.5, 0.5, 0.8, 9.0])
    exams = pd.DataFrame({"step": [0, 0, 2, 2, 5, 5], "problems": ["a", "all"] * 3})
    found = runs.with_reward(exams, metrics)["reward"]
    assert found.tolist() == pytest.approx([np.nan, np.nan, 0.5, 0.5, 0.6, 0.6], nan_ok=True)
    assert runs.with_reward(exams[:1], metrics)["reward"].isna().all()


def test_the_best_exam_is_the_first_of_the_highest_over_all_problems():
    shares = {"avg_at_k": [0.9, 0.1, 0.2, 0.5, 0.3, 0.5]}
    exams = pd.DataFrame({"step": [0, 0, 2, 2, 5, 5], "problems": ["a", "all"] * 3, **shares})
    assert runs.best(exams)["step"] == 2
    assert runs.overall(exams)["avg_at_k"].tolist() == [0.1, 0.5, 0.5]


def test_two_exams_of_a_step_on_the_same_problems_are_refused(root):
    pd.concat([TABLES[runs.EXAMS]] * 2).to_parquet(root / runs.EXAMS)
    with pytest.raises(InputError, match="duplicate rows for a step and problems"):
        runs.read(root, runs.EXAMS)
    with pytest.raises(InputError, match=r"has no evaluations\.parquet\. Train with --eval-problems"):
        runs.read(root / "other", runs.EXAMS)


def test_every_figure_of_a_run_is_a_method(root):
    run = made(root / "run")
    for name in (name for name in run_catalogue.FIGURES if name != "seeds"):  # which needs several runs
        drawn = getattr(run.plot, name.replace("-", "_"))(style="paper")
        assert drawn.to_json() == run_catalogue.draw(name, [run], run_catalogue.RunChoice(style="paper")).to_json()


def test_dynamics_default_to_the_first_measure(root):
    run = made(root / "run")
    assert run.plot.dynamics().to_json() == run.plot.dynamics(measure="entropy", site="resid_post").to_json()
    with pytest.raises(InputError, match=r"has no surprise. Choose one of entropy, "):
        run.plot.dynamics(measure="surprise")
    with pytest.raises(InputError, match=r"has no kl at mlp_in. Choose one of resid_post"):
        run.plot.dynamics(measure="kl", site="mlp_in")


def test_a_notebook_shows_the_curves_and_some_steps_of_a_run(root):
    hostile = "<script>alert(1)</script>"
    steps(*["1.resid_post"] * 90, hostile).to_parquet(root / runs.METRICS)
    page = open_run(root)._repr_html_()
    assert "<polyline" in page
    assert page.count("<tr") == 2 + SHOWN
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert len(page) < 100_000


def test_a_folder_without_metrics_is_not_opened(root):
    with pytest.raises(InputError, match=r"has no metrics\.parquet\. Give the folder of a training run"):
        open_run(root)


def test_a_run_without_scans_says_what_turned_them_off(root):
    steps("final").to_parquet(root / runs.METRICS)
    with pytest.raises(InputError, match=r"has no dynamics\.parquet\. Choose a run that scanned its layers"):
        open_run(root).dynamics()


def test_the_home_folder_of_an_unknown_user_is_refused():
    with pytest.raises(InputError, match="isn't a folder"):
        runs.find("~nobody-has-this-name/x")


@pytest.mark.parametrize("name", ["nothing", "x" * 5000, "a\0b"])
def test_a_folder_without_a_run_is_refused(name):
    with pytest.raises(InputError, match=r"has no metrics\.parquet"):
        runs.read(runs.find(name), runs.METRICS)


def test_files_without_a_column_or_without_rows_are_refused(root):
    with pytest.raises(InputError, match="no column phase, target"):
        runs.read(write(root / "a", pd.DataFrame({"step": [1], "reward": [0.5]})), runs.METRICS)
    with pytest.raises(InputError, match="no rows yet"):
        runs.read(write(root / "b", steps("final").head(0)), runs.METRICS)


WRONG = {
    "text": "<b>",
    "long": "x" * 100_000,
    "list": [1, 2],
    "nothing": None,
    "bytes": b"\xff",
    "date": pd.Timestamp("2026-01-01"),
    "truth": True,
    "half": 1.5,
    "nan": float("nan"),
    "negative": -1,
    "huge": 2**60,
}
ENDS = [f"{name}{end}" for name in runs.SHARES for end in ("", "_low", "_high")]
WELCOME = {
    (name, kind) for name in ("reward", "mean", "low", "high", *ENDS) for kind in ("half", "nan", "negative", "huge")
}
WELCOME |= {(name, "text") for name in ("phase", "target", "site", "label", "problems")}
TABLES = {
    runs.METRICS: steps("1.resid_post", "final"),
    runs.DYNAMICS: FRAME,
    runs.PASS_AT_K: pd.DataFrame({"label": ["a", "a"], "k": [1, 2], "mean": 0.1, "low": 0.0, "high": 0.2}),
    runs.EXAMS: pd.DataFrame({"step": [0, 2], "problems": "a", "samples": 8, **dict.fromkeys(ENDS, 0.5)}),
}


@pytest.mark.parametrize(
    ("name", "column"), [(name, c) for name, needed in runs.NEEDED.items() for c in sorted(needed)]
)
def test_a_column_of_the_wrong_type_is_refused_by_name(root, name, column):
    for kind, value in WRONG.items():
        if (column, kind) not in WELCOME:
            frame = TABLES[name].astype({column: object})
            frame[column] = [value] * len(frame)
            frame.to_parquet(root / name)
            with pytest.raises(InputError, match=f"in column {column}"):
                runs.read(root, name)


def test_measures_that_are_not_numbers_are_left_out(root):
    FRAME.assign(note="x", flag=True).to_parquet(root / runs.DYNAMICS)
    assert runs.measures(runs.read(root, runs.DYNAMICS)) == ["entropy", "entropy_at_input_norm", "kl"]


def test_duplicate_rows_are_refused(root):
    pd.concat([FRAME, FRAME]).to_parquet(root / runs.DYNAMICS)
    with pytest.raises(InputError, match="duplicate rows for a step, layer and site"):
        runs.read(root, runs.DYNAMICS)


def test_invalid_utf8_counts_as_damage(root):
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    table = pa.Table.from_pandas(steps("final"), preserve_index=False)
    pq.write_table(table.set_column(table.schema.names.index("phase"), "phase", bad), root / runs.METRICS)
    with pytest.raises(InputError, match="is damaged"):
        runs.read(root, runs.METRICS)
