"""Findings say what a scan shows, and nothing about what it lacks."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from internal_policy import bundle, files
from internal_policy.look import findings, statistics, view
from internal_policy.look.findings import along_the_layers, layers_in_words, stages_in_words
from internal_policy.look.view import View
from internal_policy.scans import store
from internal_policy.scans.store import Tables

DEMO = bundle.DATA / "scans" / "demo-qwen3"


def means(post: list[float], pre: list[float] | None = None, final: float | None = None) -> pd.DataFrame:
    """A table by layer as `statistics.by_layer` gives it."""
    found = pd.DataFrame({"resid_post": post} | ({"resid_pre": pre} if pre else {})).rename_axis("layer")
    if final is not None:
        found.loc[len(post), "final"] = final
    return found


def altered(change, **record) -> View:
    """The demo scan in memory with another table `layers` and other facts."""
    layers = change(store.read(DEMO, "layers"))
    kinds = {kind: pa.concat_tables(store.pieces(DEMO, kind)) for kind in (*store.KINDS, "vocabulary")}
    kept = pa.Table.from_pandas(layers, preserve_index=False)
    return View(Tables({**store.record(DEMO), **record}, {**kinds, "layers": kept}))


def sentences(one: View) -> str:
    return " ".join(findings.findings(one).sentences)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (means([6.0, 3.1, 2.0, 1.2, 1.1]), "Entropy falls most in layer 1: from 6.00 to 3.10 nats."),
        (means([3.2, 3.1, 2.4, 1.8, 1.2, 1.1]), "Entropy falls most in layers 2 and 3: from 3.10 to 1.80 nats."),
        (means([1.0, 0.5], [5.0, 1.0], 0.25), "in layer 0: from 5.00 to 1.00 nats; the model's own policy has 0.25."),
        (means([1.0, 1.02, 0.99]), "Entropy stays between 0.99 and 1.02 nats in all measured layers."),
        (means([0.5, 1.0, 12.34]), "Entropy never falls along the layers: it rises from 0.50 to 12.3 nats."),
        (
            means([0.1, 1.2, 1.3, 2.0, 1.7], final=1.7),
            "Entropy rises most in layer 1: from 0.10 to 1.20 nats, and falls most in layer 4: from 2.00 to 1.70 nats; "
            "the model's own policy has 1.70.",
        ),
        (means([0.5]), "Entropy after layer 0 is 0.50 nats."),
        (means([0.5], [0.001], 0.2), "goes from 0.001 to 0.50 nats in layer 0; the model's own policy has 0.20."),
    ],
)
def test_entropy_along_the_layers_in_one_sentence(table, said):
    assert (along_the_layers(table) or "").endswith(said)


def test_a_fall_between_measured_layers_names_the_layers_that_it_passes():
    table = means([4.0, 1.0, 0.9]).set_axis(pd.Index([0, 5, 9], name="layer"))
    assert along_the_layers(table) == "Entropy falls most in layers 1 to 5: from 4.00 to 1.00 nats."


def test_without_numbers_of_the_residual_stream_there_is_no_sentence_about_it():
    assert along_the_layers(means([1.0, np.nan, 0.5])) is None
    assert along_the_layers(pd.DataFrame({"mlp_out": [1.0, 2.0]})) is None
    assert along_the_layers(pd.DataFrame()) is None


def test_layers_are_listed_in_words():
    assert layers_in_words([3]) == "layer 3"
    assert layers_in_words([1, 2]) == "layers 1 and 2"
    assert layers_in_words([0, 2, 3, 4, 9]) == "layers 0, 2 to 4 and 9"


def test_stages_name_what_the_ffns_do():
    spans = [("convergence", 0, 0), ("exploration", 1, 3), ("convergence", 4, 5)]
    expected = "FFNs raise entropy in layers 1 to 3 (exploration) and lower it in layers 0, 4 and 5 (convergence)."
    assert stages_in_words(spans) == expected


def test_layers_in_integration_had_no_significant_change():
    assert stages_in_words([("integration", 0, 7)]) == (
        "No significant change of entropy by FFNs was found in layers 0 to 7 (integration)."
    )
    assert stages_in_words([("integration", 0, 1), ("convergence", 2, 7)]) == (
        "FFNs lower entropy in layers 2 to 7 (convergence); no significant change was found in layers 0 and 1 "
        "(integration)."
    )


def test_the_demo_scan_has_a_fall_stages_and_a_target_and_is_not_saturated():
    found = findings.findings(View(DEMO))
    assert [sentence.split()[0] for sentence in found.sentences] == ["Entropy", "FFNs", "Target"]
    assert found.commands == (
        "internal-policy show demo-qwen3 --readout norm",
        "internal-policy plot demo-qwen3 change -o change.html",
    )


def test_the_other_readout_is_followed_under_itself():
    assert findings.findings(View(DEMO, "norm")).commands == (
        "internal-policy show demo-qwen3 --readout raw",
        "internal-policy plot demo-qwen3 change --readout norm -o change.html",
    )


def sure_and_wrong(layers: pd.DataFrame) -> pd.DataFrame:
    """Layers 2 to 7 of 8 are further from the model than a uniform policy of 448 tokens is: ln 448 = 6.1."""
    return layers.assign(kl=np.where((layers["site"] == "resid_post") & (layers["layer"] > 1), 50.0, 1.0))


def test_raw_is_saturated_where_most_layers_are_worse_than_a_uniform_policy():
    one = altered(lambda layers: sure_and_wrong(layers).assign(entropy=(layers["layer"] != 4) * 1.0))
    wrong = (
        "Raw hidden states are saturated: 1 of 8 layers is almost certain (entropy below 0.5 nats), yet in 6 of 8 the "
        "KL from the model's own policy (50.0 nats) is more than a uniform policy could have (6.10). "
    )
    assert findings.findings(one).sentences[0] == f"{wrong}Read them through the final norm: --readout norm."
    assert findings.saturated(one) == f"{wrong}Choose the readout norm instead."
    uncertain = altered(lambda layers: sure_and_wrong(layers).drop(columns="entropy"))
    assert findings.saturated(uncertain).startswith("Raw hidden states are saturated: in 6 of 8 layers the KL from")


def test_saturation_counts_all_responses_and_positions_whatever_the_view_shows():
    one = altered(sure_and_wrong)
    part = dataclasses.replace(one, outcome="correct", first=3, last=3)
    assert findings.saturated(part) == findings.saturated(one) != ""


def test_a_saturated_scan_without_the_norm_readout_says_how_to_measure_it_on_screen():
    one = altered(sure_and_wrong, selection={**store.record(DEMO)["selection"], "readouts": ["raw"]})
    assert findings.saturated(one).endswith("Scan again with --readout both, and choose the readout norm.")


def test_a_few_wrong_layers_another_readout_or_no_kl_are_not_called_saturated():
    few = altered(lambda layers: sure_and_wrong(layers).assign(kl=lambda f: f["kl"].where(f["layer"] > 4, 1.0)))
    lacking = altered(lambda layers: layers.drop(columns="kl"))
    other = dataclasses.replace(altered(sure_and_wrong), readout="norm")
    assert not any("saturated" in sentences(one) for one in (few, lacking, other))


def only(*readouts: str, folder: Path) -> View:
    """A saturated scan on disk with these readouts."""
    shutil.copytree(DEMO, folder)
    record = store.record(folder)
    for path in store.parts(folder, "layers"):
        layers = sure_and_wrong(store.read_part(path).to_pandas())
        store.write_table(path, pa.Table.from_pandas(layers[layers["readout"].isin(readouts)], preserve_index=False))
        record["files"][path.name] = files.fingerprint(path)
    record["selection"]["readouts"] = list(readouts)
    (folder / store.RECORD).write_text(json.dumps(record))
    return View(folder)


def test_a_saturated_scan_without_the_norm_readout_gives_the_command_that_measures_it(tmp_path):
    assert findings.findings(only("raw", folder=tmp_path / "mine")).commands == (
        "internal-policy scan --model demo-qwen3 --problems data/problems/heldout.jsonl --limit 20 --readout both",
        f"internal-policy plot {tmp_path}/mine change -o change.html",
    )


@pytest.mark.parametrize(
    "program", ["internal-policy", "/venv/bin/internal-policy", "/src/internal_policy/__main__.py"]
)
def test_the_command_that_measures_the_norm_readout_too_keeps_the_other_options(program):
    command = [program, "scan", "--readout", "raw", "--model", "my model", "-o", "mine", "--output=mine", "--json"]
    assert findings.with_norm(command) == "internal-policy scan --model 'my model' --readout both"


@pytest.mark.parametrize("command", [[], ["notebook.py"], ["pytest", "scan"], ["internal-policy", "fit-lens"]])
def test_a_scan_that_no_command_made_gives_no_command(command):
    assert findings.with_norm(command) == ""


def first_responses(number: int, change=lambda layers: layers) -> View:
    """The first responses of the demo scan."""
    one = altered(lambda layers: change(layers)[layers["rollout"] < number])
    return dataclasses.replace(one, source=fewer(one.source, number))


@pytest.mark.parametrize(("number", "said"), [(1, "1 rollout is"), (3, "3 rollouts are"), (7, "7 rollouts are")])
def test_few_responses_are_too_few_to_tell_stages(number, said):
    found = sentences(first_responses(number, flat))
    assert (
        f"{said} too few to tell the layers' stages or a target layer: intervals for all layers at once need" in found
    )
    assert not any(word in found for word in ("significant", "integration", "NaN"))


def test_eight_responses_tell_stages():
    found = sentences(first_responses(8))
    assert "(convergence)" in found
    assert "too few" not in found


def test_few_responses_that_have_a_target_layer_name_it():
    found = sentences(first_responses(7))
    assert "7 rollouts are too few to tell the layers' stages: intervals" in found
    assert "Target layer: 6" in found


def test_few_responses_say_what_the_ffns_do_on_average():
    found = sentences(first_responses(3))
    assert "On average FFNs raise entropy in layers 1 to 6 and lower it in layers 0 and 7." in found
    lowered = first_responses(3, lambda layers: flat(layers).assign(entropy=falling))
    assert "On average FFNs lower entropy in every layer." in sentences(lowered)
    assert "On average" not in sentences(first_responses(3, flat))


def falling(layers: pd.DataFrame) -> pd.Series:
    """Every FFN lowers the entropy by 1 nat."""
    return layers["entropy"].mask(layers["site"] == "mlp_out", 0.0)


def fewer(source, number: int) -> Tables:
    arrow = {kind: table.slice(0, number) if kind == "rollouts" else table for kind, table in source.arrow.items()}
    return dataclasses.replace(source, arrow=arrow)


def flat(layers: pd.DataFrame) -> pd.DataFrame:
    """FFNs change no entropy."""
    return layers.assign(entropy=np.where(layers["site"].isin(["mlp_in", "mlp_out"]), 1.0, layers["entropy"]))


def test_without_a_target_layer_the_findings_say_what_train_needs():
    said = sentences(altered(flat))
    assert "No layer's FFN raises entropy significantly, so there is no target layer" in said
    assert "`internal-policy train` then needs --layer." in said


def test_some_layers_alone_are_named_beside_the_target():
    assert sentences(altered(lambda layers: layers[layers["layer"] > 5])).endswith("Only 2 of 8 layers were measured.")


def test_a_scan_without_ffns_or_entropy_says_nothing_about_them():
    streams = altered(lambda layers: layers[layers["site"].isin(["resid_post", "final"])])
    assert [sentence.split()[0] for sentence in findings.findings(streams).sentences] == ["Entropy"]
    assert findings.findings(altered(lambda layers: layers.drop(columns="entropy"))).sentences == ()
    assert findings.findings(altered(lambda layers: layers.assign(entropy=np.nan))).sentences == ()


def test_a_scan_in_memory_has_findings_and_no_commands():
    found = findings.findings(altered(lambda layers: layers))
    assert (found.sentences, found.commands) == (findings.findings(View(DEMO)).sentences, ())


def test_a_scan_of_the_cache_is_called_by_the_fewest_digits_that_tell_it_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path))
    for digest in ("75a0938d59d2", "75a0938d0000", "123456789abc"):
        shutil.copytree(DEMO, tmp_path / "model" / digest)
    names = {name: store.find(name).name for name in map(findings.name, store.scans())}
    assert names == {"75a0938d5": "75a0938d59d2", "75a0938d0": "75a0938d0000", "1234": "123456789abc"}


def test_a_folder_with_a_space_is_quoted(tmp_path):
    assert findings.name(tmp_path / "my scan") == f"'{tmp_path}/my scan'"


def test_means_of_the_findings_are_those_of_the_tables():
    table = statistics.by_layer(view.layers(View(DEMO)), "raw")
    start = table.loc[0, "resid_pre"]
    assert f"from {start:.2f} to {table.loc[0, 'resid_post']:.2f} nats" in sentences(View(DEMO))


def test_the_verdict_says_where_entropy_falls_which_layer_is_the_target_and_whether_raw_can_be_trusted():
    falls, target, raw = findings.verdict(View(DEMO))
    assert (falls, target) == (sentences_of(DEMO)[0], sentences_of(DEMO)[2])
    assert raw == (
        "Raw hidden states can be trusted: their KL from the model's own policy is no more than a uniform policy could "
        "have (6.10 nats). After layer 7 it is 0.10 nats."
    )
    assert findings.verdict(View(DEMO, "norm"))[2] == raw


def sentences_of(source) -> tuple[str, ...]:
    return findings.findings(View(source)).sentences


def test_the_verdict_on_a_saturated_scan_begins_with_that():
    said = [sentence.split()[0] for sentence in findings.verdict(altered(sure_and_wrong))]
    assert said == ["Raw", "Entropy", "Target"]


def test_raw_can_be_partly_trusted():
    few = altered(lambda layers: sure_and_wrong(layers).assign(kl=lambda f: f["kl"].where(f["layer"] > 4, 1.0)))
    assert findings.trust(few).startswith("Raw hidden states can be trusted in 5 of 8 layers: there their KL")


def test_a_saturated_scan_shown_through_the_final_norm_says_that_raw_is_saturated():
    one = dataclasses.replace(altered(sure_and_wrong), readout="norm")
    said = findings.trust(one)
    assert said.startswith("Raw hidden states are saturated")
    assert said.endswith("The numbers here are read through the final norm.")


def test_without_raw_the_verdict_is_about_the_readout_that_was_measured():
    selection = {**store.record(DEMO)["selection"], "readouts": ["norm"]}
    one = altered(lambda layers: layers[layers["readout"] == "norm"], selection=selection)
    said = findings.trust(dataclasses.replace(one, readout="norm"))
    assert said.startswith("Hidden states read through the final norm can be trusted")


def test_the_verdict_names_too_few_responses_for_a_target():
    assert findings.verdict(first_responses(3, flat))[1].startswith("3 rollouts are too few to tell the layers' stages")


def test_a_verdict_leaves_out_what_was_not_measured():
    assert findings.verdict(altered(lambda layers: layers.drop(columns=["entropy", "kl"]))) == ()
