"""A study has the numbers of its scans by step, the paired change since the first, and a figure that plays them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import internal_policy as ip
from internal_policy import bundle
from internal_policy.errors import DamageError, InputError
from internal_policy.look import export, run_catalogue, studies, theme
from internal_policy.look.run_catalogue import RunChoice
from internal_policy.look.study import Study, open_study
from internal_policy.scans import records, store, study

DEMO = bundle.DATA / "scans" / "demo-qwen3"
RUN = bundle.DATA / "experiments" / "bupo"


def later(layers: pa.Table) -> pa.Table:
    """The same table with other entropies, which differ from rollout to rollout."""
    frame = layers.to_pandas()
    return pa.Table.from_pandas(
        frame.assign(entropy=frame["entropy"] * 0.9 + 0.01 * frame["rollout"]),
        schema=layers.schema,
        preserve_index=False,
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """A study of two steps: the bundled scan, and the same with other entropies."""
    layers, place = pa.concat_tables(store.pieces(DEMO, "layers")), tmp_path / "mine"
    study.begin(place, {"checkpoints": "x"}, "x", "given")
    study.add(place, 200, "checkpoint-200", store.record(DEMO), later(layers), None)
    study.add(place, 100, "checkpoint-100", store.record(DEMO), layers, "demo-qwen3")
    return place


@pytest.fixture
def opened(folder) -> Study:
    return open_study(folder)


@pytest.mark.parametrize("measure", ["entropy", "kl", "norm"])
def test_the_means_of_a_step_are_those_of_its_scan(opened, measure):
    found = opened.means(measure)
    assert opened.steps == [100, 200]
    first = found[found["step"] == 100].drop(columns="step").reset_index(drop=True)
    pd.testing.assert_frame_equal(first, ip.open_scan("demo-qwen3").means(measure), check_exact=True)


def test_the_change_since_the_first_step_is_the_paired_difference_of_two_scans(folder, tmp_path):
    scan = tmp_path / "later"
    shutil.copytree(DEMO, scan)
    for path in store.parts(scan, "layers"):
        store.write_table(path, later(pq.read_table(path)), group="rollout")
    record = json.loads((scan / store.RECORD).read_text())
    record = {name: value for name, value in record.items() if name not in ("checksum", "footers")}
    record["files"] = {name: store.files.fingerprint(scan / name) for name in record["files"]}
    (scan / store.RECORD).write_text(json.dumps(record))
    expected = ip.open_scan("demo-qwen3").difference(ip.open_scan(scan))
    found = open_study(folder).since()
    assert set(found["step"]) == {200}
    columns = {"mean": "difference"} | {name: name for name in ("low", "high", "low_all", "high_all")}
    for mine, theirs in columns.items():
        np.testing.assert_allclose(found[mine], expected[theirs], rtol=1e-9, atol=1e-14)


def test_the_measure_change_is_the_entropy_change_of_each_module(opened):
    found = opened.means("change")
    changes = ip.open_scan("demo-qwen3").changes()
    expected = changes[(changes["change"] == "mlp") & (changes["part"] == "total")]["mean"]
    mine = found[(found["step"] == 100) & (found["site"] == "mlp_out")]["mean"]
    np.testing.assert_allclose(mine, expected, rtol=1e-12)


def test_another_readout_is_a_view(opened):
    norm = opened.view("norm")
    first = norm.means()[norm.means()["step"] == 100].drop(columns="step").reset_index(drop=True)
    pd.testing.assert_frame_equal(first, ip.open_scan("demo-qwen3").view(readout="norm").means())
    with pytest.raises(InputError, match="has no readout 'tuned', only raw, norm"):
        opened.view("tuned")


def test_a_step_has_its_scan_unless_none_was_kept(opened):
    assert opened.scan(100).source == DEMO
    with pytest.raises(InputError, match="only kept the layers of step 200"):
        opened.scan(200)
    with pytest.raises(InputError, match="has no step 300"):
        opened.scan(300)


def test_the_dynamics_of_a_study_are_its_means_over_tokens(opened):
    found = opened.dynamics().set_index(["step", "layer", "site"])
    means = opened.means().set_index(["step", "layer", "site"])["mean"]
    np.testing.assert_allclose(found.loc[means.index, "entropy"], means, rtol=1e-6)


def test_a_training_run_opens_as_a_study_without_intervals():
    run, found = ip.open_run("experiments/bupo"), open_study("experiments/bupo")
    means = found.means().set_index(["step", "layer", "site"])
    dynamics = run.dynamics().set_index(["step", "layer", "site"])["entropy"]
    np.testing.assert_array_equal(means["mean"], dynamics.loc[means.index])
    assert means[["low", "high"]].isna().all().all()
    assert found.steps[0] == 0


@pytest.mark.parametrize("name", ["steps", "dynamics"])
def test_a_figure_of_steps_is_drawn_of_a_study(opened, name):
    assert len(run_catalogue.data(name, [opened], RunChoice()))
    assert "200" in export.html(run_catalogue.draw(name, [opened], RunChoice()))


def test_each_step_is_a_frame_with_what_changes(opened):
    figure = opened.plot.steps(step=100)
    assert [frame.name for frame in figure.frames] == ["100", "200"]
    for frame in figure.frames:
        assert [trace.type for trace in frame.data] == ["scatter"] * len(frame.traces) == ["scatter"] * 16
    moved, shown = figure.frames[0].data, theme.traces(figure)
    for number, trace in zip(figure.frames[0].traces, moved, strict=True):
        np.testing.assert_array_equal(trace.y, shown[number].y)
    assert figure.layout.sliders[0].active == 0
    means = opened.means()
    ffn = means[(means["step"] == 200) & (means["site"] == "mlp_out")]
    np.testing.assert_array_equal(figure.frames[1].data[5].y, ffn["mean"])


def test_in_print_one_step_is_drawn_without_a_slider(opened):
    figure = opened.plot.steps(style="paper")
    assert not figure.layout.sliders
    assert not figure.frames


def test_an_image_has_no_slider(opened):
    still: Any = export.still(opened.plot.steps())
    assert still.layout.title.text == "Entropy by layer while training: step 200"
    assert not still.layout.sliders
    assert not still.layout.updatemenus


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"step": 5}, "There is no step 5. Choose one of 100, 200"),
        ({"measure": "colour"}, "There is no measure 'colour' here"),
        ({"readout": "tuned"}, "was not measured with the readout 'tuned', only with raw, norm"),
    ],
)
def test_what_a_study_lacks_is_refused(opened, given, said):
    with pytest.raises(InputError, match=said):
        opened.plot.steps(**given)


def test_figures_of_training_are_refused_for_a_study(opened):
    for name, said in (("training", "has no metrics.parquet"), ("layer", "no layer was chosen. Choose a layer")):
        with pytest.raises(InputError, match=said):
            getattr(opened.plot, name)()
    assert len(run_catalogue.data("layer", [opened], RunChoice(layer=3))) == 2


def test_a_single_step_has_no_change(folder):
    study.forget(folder, 100)
    assert open_study(folder).steps == [100]
    assert not (folder / study.table_name(200)).exists()
    with pytest.raises(InputError, match="There is only step 100, and a change needs two"):
        open_study(folder).since()
    assert len(open_study(folder).plot.steps().frames) == 1


def test_a_step_of_another_model_is_refused(folder):
    record, layers = store.record(DEMO), pa.concat_tables(store.pieces(DEMO, "layers"))
    with pytest.raises(InputError, match="x has 9 layers, but the steps before have 8"):
        study.add(folder, 300, "x", {**record, "n_layers": 9}, layers, None)


def test_an_altered_table_is_refused(folder):
    path = folder / study.table_name(100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamageError, match=r"step-00000100.parquet is damaged \(it was changed"):
        open_study(folder).means()
    path.unlink()
    with pytest.raises(DamageError, match="it is missing"):
        open_study(folder).means()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": "x"},
        {"steps": [{"step": -1, "name": "x", "scan": None}]},
        {"steps": [{"step": 1, "name": "x", "scan": None}]},
        {"files": {"../x.parquet": {}}},
        {"n_layers": 0},
        {"selection": {}},
        {"asked": 5},
        {"model": None},
    ],
    ids=str,
)
def test_a_record_that_lies_is_refused(folder, change):
    found = records.read(folder / study.RECORD)
    records.write(folder / study.RECORD, {**found, **change})
    with pytest.raises(InputError, match=r"study\.json is damaged"):
        open_study(folder)


def test_a_study_is_opened_by_its_name_in_the_cache(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(folder, tmp_path / "cache" / "studies" / "mine-123456")
    assert list(studies.listed()) == ["studies/mine-123456"]
    assert open_study("mine-123456").steps == open_study("studies/mine-123456").steps == [100, 200]
    with pytest.raises(InputError, match=r"There is no study 'other'\. Choose one of studies/mine-123456"):
        open_study("other")
