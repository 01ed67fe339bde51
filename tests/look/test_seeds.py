"""Methods are compared with GRPO over seeds."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_figures import HOSTILE, traces

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import run_catalogue, run_summary, seeds, theme
from internal_policy.look.run_catalogue import RunChoice
from internal_policy.look.runs import METRICS, RECORD, RunTables

BUNDLED = RunTables(bundle.DATA / "experiments" / "bupo", "bupo")


def trained(folder, method: str, seed: int, reward: float, **settings) -> RunTables:
    """A run of three steps with a constant reward."""
    folder.mkdir()
    internal = method == "bupo"
    phases = ["internal", "final", "final"] if internal else ["final"] * 3
    targets = ["1.resid_post", "final", "final"] if internal else ["final"] * 3
    metrics = pd.DataFrame({"step": [1, 2, 3], "reward": reward, "phase": phases, "target": targets})
    if method not in ("bupo", "grpo"):  # runs of earlier versions have these and don't name them
        metrics["method"] = method
    metrics.to_parquet(folder / METRICS)
    asked = {"method": method, "seed": seed, "model": HOSTILE, "learning_rate": 1e-5, **settings}
    (folder / RECORD).write_text(json.dumps(asked))
    return RunTables(folder, folder.name)


@pytest.fixture
def chosen(tmp_path) -> list[RunTables]:
    """Two methods with two seeds."""
    rewards = {("bupo", 0): 0.5, ("bupo", 1): 0.9, ("grpo", 0): 0.4, ("grpo", 1): 0.6}
    return [trained(tmp_path / f"{method}{seed}", method, seed, value) for (method, seed), value in rewards.items()]


def test_the_difference_is_paired_by_seed_with_an_interval_by_students_t(chosen):
    curves, difference, name = seeds.compared(seeds.read(chosen), None, 1)
    last = difference.iloc[-1]
    # differences 0.1 and 0.3: mean 0.2, standard error 0.1, t of one degree of freedom 12.706
    assert last[["mean", "low", "high", "seeds"]].tolist() == pytest.approx(
        [0.2, 0.2 - 1.2706, 0.2 + 1.2706, 2], rel=1e-4
    )
    assert name == "BuPO, 1.resid_post, 1 internal step"
    assert seeds.verdict(curves, difference) == (
        "At step 3 the reward of BuPO is not shown to differ from GRPO: +0.200 (-1.071 to +1.471) over 2 seeds."
    )


def test_the_bundled_run_is_compared_with_those_recorded_beside_it():
    figure: Any = run_catalogue.draw("seeds", [BUNDLED], RunChoice())
    steps = pd.read_parquet(BUNDLED.folder.parent / seeds.STEPS)
    mine = steps.query("model == 'demo-qwen3' and method == 'grpo' and seed < 100")
    last = mine[mine["step"] > mine["step"].max() - 10].groupby("seed")["reward"].mean()
    (_, drawn) = traces(figure, "GRPO") if len(traces(figure, "GRPO")) == 2 else (None, traces(figure, "GRPO")[0])
    assert drawn.y[-1] == pytest.approx(last.mean())
    assert f"{len(last)} seeds, bands 95%" in figure.layout.meta["caption"]
    groups = seeds.groups(seeds.read([BUNDLED]))
    assert any(re.fullmatch(r"demo-llama · BuPO, layer \d, \d+ internal steps", group) for group in groups)


def test_choosing_runs_are_left_out_and_other_methods_have_no_layer(tmp_path):
    run = trained(tmp_path / "one", "bupo", 0, 0.1)
    about = {"model": "m", "layer": -1, "internal_steps": 0, "step": 1, "reward": 0.1}
    rows = [about | {"method": method, "seed": seed} for method in ("rloo", "grpo") for seed in (0, 1, 100, 101)]
    pd.DataFrame(rows).to_parquet(tmp_path / seeds.STEPS)
    found = seeds.read([run])
    assert set(found["group"]) == {"m · RLOO", "m · GRPO"}
    assert set(found["seed"]) == {0, 1}


@pytest.mark.parametrize("method", [name for name in run_summary.METHODS if name not in ("bupo", "grpo")])
def test_every_method_is_compared_with_grpo(tmp_path, chosen, method):
    rewards = {0: 0.3, 1: 0.4}
    more = [trained(tmp_path / f"other{seed}", method, seed, value) for seed, value in rewards.items()]
    title = run_summary.METHODS[method]
    curves, difference, name = seeds.compared(seeds.read([*chosen, *more]), title, 1)
    assert (name, curves["method"].unique().tolist()) == (title, [method, "grpo"])
    assert difference["mean"].iloc[-1] == pytest.approx(-0.15)
    assert f"the reward of {title} is not shown to differ" in seeds.verdict(curves, difference)
    assert seeds.groups(seeds.read([*chosen, *more])) == ["BuPO, 1.resid_post, 1 internal step", title]
    assert seeds.compared(seeds.read([*chosen[2:], *more]), None, 1)[2] == title
    figure: Any = run_catalogue.draw("seeds", [*chosen, *more], RunChoice(method=title, smooth=1))
    assert figure.layout.title.text == f"{title} and GRPO over seeds"


def test_methods_of_the_experiment_have_titles_and_name_a_layer_that_tells_them_apart(tmp_path):
    run = trained(tmp_path / "one", "bupo", 0, 0.1)
    about = {"model": "m", "internal_steps": 0, "step": 1, "reward": 0.1}
    cells = [("frozen", 3), ("single", 1), ("single", 3), ("grpo", -1), ("new", -1)]
    rows = [about | {"method": name, "layer": layer, "seed": seed} for name, layer in cells for seed in (0, 1)]
    pd.DataFrame(rows).to_parquet(tmp_path / seeds.STEPS)
    one = "m · GRPO on one layer, layer"
    assert seeds.groups(seeds.read([run])) == ["m · GRPO with lower layers frozen", f"{one} 1", f"{one} 3", "m · new"]


def test_runs_with_and_without_a_schedule_are_compared(tmp_path, chosen):
    for run in chosen:
        asked = json.loads((run.folder / RECORD).read_text())
        schedule = "1.resid_post:1" if asked["method"] == "bupo" else None
        (run.folder / RECORD).write_text(json.dumps(asked | {"schedule": schedule}))
    assert seeds.compared(seeds.read(chosen), None, 1)[2].startswith("BuPO")


def test_names_of_models_are_inert_in_the_figure(chosen):
    figure: Any = run_catalogue.draw("seeds", chosen, RunChoice(smooth=1))
    assert HOSTILE not in str(figure.layout.title)
    assert {trace.name for trace in theme.traces(run_catalogue.draw("seeds", chosen, RunChoice(smooth=2)))} >= {
        "BuPO",
        "GRPO",
    }


def test_runs_that_cannot_be_compared_over_seeds_are_refused_with_the_reason(chosen, tmp_path):
    other = trained(tmp_path / "fast", "grpo", 2, 0.1, learning_rate=1.0)
    again = trained(tmp_path / "again", "grpo", 0, 0.1)
    unknown = trained(tmp_path / "unknown", "grpo", 3, 0.1)
    (unknown.folder / RECORD).unlink()
    refused = {
        "The runs differ in learning_rate": [*chosen, other],
        "Two of the runs have the same method and seed": [*chosen, again],
        "bupo0 has no steps.parquet beside it": [*chosen, unknown],
        "No method has 2 seeds here": [chosen[0], chosen[2]],
        "don't compare a method with GRPO": chosen[:2],
        "grpo1 has no steps.parquet beside it": [chosen[3]],
    }
    for said, runs in refused.items():
        with pytest.raises(InputError, match=said):
            run_catalogue.draw("seeds", runs, RunChoice())
    with pytest.raises(InputError, match=r"because the runs share only 3 steps\. Choose 3 or fewer"):
        run_catalogue.draw("seeds", chosen, RunChoice())
    with pytest.raises(InputError, match="There is no group 'x'"):
        run_catalogue.draw("seeds", chosen, RunChoice(method="x"))


@pytest.mark.parametrize("harm", ["damaged", "columns"])
def test_a_harmed_table_of_steps_is_refused(tmp_path, harm):
    run = trained(tmp_path / "one", "bupo", 0, 0.1)
    path = tmp_path / seeds.STEPS
    path.write_bytes(b"PAR1") if harm == "damaged" else pd.DataFrame({"x": np.zeros(2)}).to_parquet(path)
    with pytest.raises(InputError, match="is damaged" if harm == "damaged" else "has no column"):
        seeds.read([run])
