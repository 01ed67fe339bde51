"""No two scans of a comparison have the same label."""

import shutil
from dataclasses import replace
from pathlib import Path

from internal_policy import bundle, files
from internal_policy.look import catalogue
from internal_policy.look.catalogue import Choice
from internal_policy.look.headings import heading, labels
from internal_policy.look.view import About, View
from internal_policy.scans import records, store

DEMO, OTHER = (View(bundle.DATA / "scans" / name) for name in ("demo-qwen3", "demo-llama"))


def copies(copied: Path, *facts: dict) -> list[View]:
    """Copies of a scan, whose records differ in these facts."""
    found = []
    for number, changed in enumerate(facts):
        folder = Path(shutil.copytree(copied, copied.parent / f"copy-{number}"))
        record = records.read(folder / store.RECORD)
        asked = {**record["asked"], **changed.get("asked", {})}
        files.write_json(folder / store.RECORD, {**record, **changed, "asked": asked})
        found.append(View(folder))
    return found


def test_models_with_different_names_need_nothing_else():
    assert labels([DEMO, OTHER]) == ["demo-qwen3", "demo-llama"]


def test_readouts_of_one_scan_are_named():
    named = labels([DEMO, replace(DEMO, readout="norm"), OTHER])
    assert named == ["demo-qwen3 · raw hidden states", "demo-qwen3 · through the final norm", "demo-llama"]


def test_readouts_of_a_scan_in_memory_are_named():
    record = {name: value for name, value in store.record(DEMO.source).items() if name not in ("created", "digest")}
    one = View(store.Tables(record, {}))
    assert labels([one, replace(one, readout="norm")])[1] == "demo-qwen3 · through the final norm"


def test_only_what_tells_scans_of_one_model_apart_is_named(copied):
    found = copies(copied, {}, {"dtype": "float32"}, {"asked": {"temperature": 0.7}}, {"digest": "0123456789ab"})
    assert labels(found[:2]) == ["demo-qwen3 · bfloat16", "demo-qwen3 · float32"]
    assert labels([found[0], found[2]]) == ["demo-qwen3 · temperature 1.0", "demo-qwen3 · temperature 0.7"]
    assert labels([found[0], found[3]]) == ["demo-qwen3 · 75a0938d", "demo-qwen3 · 01234567"]
    assert len({*labels(found)}) == 4


def test_other_weights_of_the_same_name_are_named(copied):
    found = copies(copied, {}, {"asked": {"identity": "sha256 0123456789ab on sha256 db0ce631be91"}})
    assert labels(found) == ["demo-qwen3 · weights db0ce631", "demo-qwen3 · weights 01234567"]


def test_given_responses_are_told_from_sampled_ones(copied):
    given = {"asked": {"rollouts": "r.parquet", "samples": None, "temperature": None, "problems": None}}
    named = labels(copies(copied, {}, given))
    assert named == ["demo-qwen3 · sampled responses", "demo-qwen3 · given responses"]


def test_the_same_view_twice_still_has_two_labels():
    assert labels([DEMO, DEMO]) == ["demo-qwen3", "demo-qwen3 (2)"]


def test_long_names_that_end_alike_have_different_labels(copied):
    found = copies(copied, {"model": "/a" + "/same" * 20}, {"model": "/b" + "/same" * 20, "digest": "0123456789ab"})
    first, second = labels(found, 20)
    assert first != second
    assert all(len(line) <= 20 for label in (first, second) for line in label.split(" · "))


def test_a_heading_keeps_short_facts_on_one_line():
    about = About("m", "raw", 2, 9, 4, 10, label="m · through the final norm · float32 · <b>")
    assert heading(about, 2, "paper") == ["m", "through the final norm", "float32 · &lt;b&gt;", "2 rollouts, 9 tokens"]


def test_the_headings_of_four_columns_fit_a_phone():
    about = About("SmolLM2-135M-Instruct", "raw", 20, 823, 4, 10)
    assert heading(about, 4, "screen") == ["…LM2-135M-", "Instruct", "20 rollouts", "823 tokens"]


def test_two_readouts_of_one_scan_are_drawn_side_by_side_and_named_in_the_caption():
    figure = catalogue.draw("compare", [DEMO, replace(DEMO, readout="norm")], Choice())
    assert figure.layout["meta"]["caption"] == "raw hidden states · through the final norm"
    texts = [note.text for note in figure.layout["annotations"]]
    assert any("raw hidden states" in text for text in texts)
    assert any("through the final norm" in text for text in texts)
