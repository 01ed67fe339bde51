"""The dashboard's pages, without a browser."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jsonl, rewarded, slow  # pyright: ignore[reportAttributeAccessIssue] that of the folder above

from internal_policy import bundle, errors, files
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.look import alignment, comparison, theme
from internal_policy.look.lens_grid import payload
from internal_policy.look.runs import SHARES
from internal_policy.scans import records, store, study

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

APP = Path(__file__).parents[2] / "app"
PAGES = (
    "overview",
    "flow",
    "tokens",
    "compare",
    "training",
    "steps",
    "alignment",
    "geometry",
    "check",
    "ablation",
    "prompt",
)
GRID = {"rollout": 2, "layer": 3, "position": 5, "site": "mlp_out", "measure": "change"}
"""URL parameters that no widget holds, with valid values."""
ALIGNED = bundle.DATA / "scans" / "demo-qwen3-alignment"
AGAINST = ("against", "against_readout", "against_rollout")
"""Those of the second response of a comparison."""
SIDEBAR = ("scan", "readout", "outcome", "first", "last", "average")
ADDRESSES = {
    "overview": (*SIDEBAR, "where"),  # where: only of scans with marks
    "flow": ("spread", "spread_measure"),
    "tokens": tuple(GRID),
    "compare": ("compare", *AGAINST),
    "training": (
        "run",
        "training_against",
        "training_difference",
        "training_group",
        "training_layer",
        "training_measure",
        "training_site",
        "training_smooth",
        "training_step",
    ),
    "steps": ("study", "steps_measure", "steps_readout"),
    "alignment": ("alignment", "alignment_site"),
}
"""Page -> its own URL parameters, besides those of the sidebar."""
ABSURD = ("nan", "1e400", "2147483647", "-1", "1.5", "", "~nobody/x", "\0", "x" * 100_000, "<b>$x$ [a](http://b.c)")
"""Values that are invalid for every parameter."""
HOSTILE = ["<script>alert(1)</script>", "<b>", "$x$", "[a](http://evil.example)", "\n", "<0xF0>", "\u202e", "![a](b)"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["main.py", str(tmp_path.parent)])
    return tmp_path / "cache"


def opened(page: str = "overview", **query) -> AppTest:
    """A page, opened by its address."""
    app = AppTest.from_file(str(APP / "main.py"), default_timeout=30)
    for name, value in query.items():
        app.query_params[name] = value
    if page != "overview":
        app.switch_page(f"views/{page}.py")
    app.run()
    assert not app.exception, app.exception[0].message
    assert not any(text.startswith("⚠ This can't be drawn") for text in texts(app))
    return app


def texts(app: AppTest) -> list[str]:
    return [text.value for text in app.text]


def refusals(app: AppTest) -> list[str]:
    return [text for text in texts(app) if text.startswith("⚠")]


def captions(app: AppTest) -> str:
    return " ".join(re.sub(r"\\(.)", r"\1", caption.value) for caption in app.caption)


def charts(app: AppTest) -> list[str]:
    return [chart.proto.alt for chart in app.get("plotly_chart")]


def grid(app: AppTest) -> dict:
    """What the lens grid was given: its one payload with what is chosen in it."""
    components = [element for element in app.main if element.type == "bidi_component"]
    (lens,) = [element for element in components if element.proto.component_name == "lens_grid"]
    data = json.loads(lens.proto.json)
    (numbers,) = data["grids"]
    return {**numbers, "chosen": data["chosen"]}


def rewrite(folder: Path, **changes) -> None:
    record = records.read(folder / store.RECORD)
    (folder / store.RECORD).write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    ("page", "n"), [("overview", 2), ("flow", 3), ("compare", 2), ("geometry", 2), ("ablation", 1)]
)
def test_every_page_draws_its_figures(page, n):
    app = opened(page, scan="demo-qwen3")
    assert len(charts(app)) == n
    of_one_readout = [said for said in charts(app) if " by readout" not in said]
    readout = "through the final norm" if page in ("tokens", "compare") else "raw hidden states"
    assert all(readout in said for said in of_one_readout)
    assert not refusals(app)


def test_pages_of_tokens_open_on_the_norm_until_a_readout_is_picked():
    app = opened()
    for page, readout in (("overview", "raw"), ("tokens", "norm"), ("geometry", "raw")):
        assert app.switch_page(f"views/{page}.py").run().session_state["readout"] == readout
    app.radio(key="readout").set_value("norm").run()
    assert app.switch_page("views/overview.py").run().session_state["readout"] == "norm"
    assert opened("tokens", readout="raw").session_state["readout"] == "raw"


@pytest.mark.parametrize(
    ("page", "drawn"),
    [("overview", SIDEBAR), ("tokens", SIDEBAR[:-1]), ("check", SIDEBAR[:-1]), ("training", ()), ("prompt", ())],
)
def test_the_sidebar_only_has_what_the_page_uses(page, drawn):
    app = opened(page, scan="demo-qwen3")
    assert tuple(element.key for element in app.sidebar if element.key in SIDEBAR) == drawn


def test_the_check_page_shows_verdicts_outcomes_and_the_command_of_a_better_scan():
    app = opened("check", scan="smollm2-135m")
    said = " ".join(re.sub(r"\\(.)", r"\1", each.value) for each in app.markdown)
    assert "**Entropy flow** :orange-badge[holds for raw only]" in said
    assert "**Target layer** :red-badge[does not hold]" in said
    (table,) = [frame.value for frame in app.dataframe]
    assert table.set_index("").loc["Direction alone", "flow"] == "✗ +0.29"
    assert "--controls" in app.code[0].value
    assert not refusals(app)


def test_a_choice_that_a_page_hides_is_kept():
    app = opened(scan="demo-llama", average="rollouts", last="9")
    app.switch_page("views/training.py").run()
    app.switch_page("views/overview.py").run()
    assert [app.session_state[key] for key in ("scan", "average", "last")] == ["demo-llama", "rollouts", 9]


def test_the_box_of_the_last_position_follows_the_scan():
    app = opened(scan="demo-qwen3")
    last = app.number_input(key="last").value
    app.selectbox(key="listed").select("smollm2-135m").run()
    assert (last, app.number_input(key="last").value) == (50, 31)
    assert "positions" not in charts(app)[0]
    app.number_input(key="last").set_value(9).run()
    assert "positions 0 to 9" in charts(app)[0]


@pytest.mark.parametrize(
    ("rewards", "fact", "said"),
    [([1.0, 0.0], "50.0% correct", "correct"), ([-0.5, 0.25], "mean reward -0.125", "reward -0.5")],
)
def test_the_dashboard_shows_correct_only_for_rewards_of_0_or_1(copied, rewards, fact, said):
    rewarded(copied, rewards)
    assert fact in captions(opened(scan=str(copied)))
    assert any(f"{said} · " in text for text in texts(opened("tokens", scan=str(copied))))


def test_the_overview_is_a_verdict_of_three_sentences_with_links_to_the_least_certain_tokens():
    app = opened(scan="demo-qwen3", readout="norm")
    (verdict,) = [text.value for text in app.markdown if text.value.startswith("- Entropy")]
    assert [line.split()[1] for line in verdict.splitlines()] == ["Entropy", "Target", "Raw"]
    response, token = [dict(parse_qsl(link.proto.query_string)) for link in app.get("page_link")]
    assert response == {"rollout": "5"}
    assert {**token, "rollout": "", "position": ""} == {"rollout": "", "layer": "7", "position": "", "site": "attn_out"}
    app = opened("tokens", scan="demo-qwen3", readout="norm", **token)
    assert grid(app)["chosen"] == {
        "readout": "norm",
        "site": "attn_out",
        "layer": 7,
        "position": int(token["position"]),
    }
    assert not refusals(app)


def test_a_scan_without_attention_still_has_an_overview(copied):
    rewrite(copied, selection={**store.record(copied)["selection"], "sites": ["mlp_in", "mlp_out"]})
    app = opened(scan=str(copied))
    assert len(app.get("page_link")) == 1
    assert not refusals(app)


def test_a_saturated_scan_points_to_the_norm_readout():
    app = opened(scan="smollm2-135m", readout="raw")
    assert any("Raw hidden states are saturated" in text.value for text in app.markdown)
    assert any("Choose the readout norm" in text.value for text in app.markdown)


def test_the_table_by_layer_ends_with_final():
    (table,) = [frame.value for frame in opened(scan="demo-qwen3").dataframe if "layer" in frame.value]
    assert table["layer"].tolist() == [*"01234567", "final"]


def test_the_scan_of_a_language_model_opens_by_default():
    assert opened().selectbox(key="listed").value == "smollm2-135m"


def test_an_emptied_box_opens_the_default():
    app = opened(scan="demo-llama")
    app.text_input(key="scan").set_value("").run()
    assert app.selectbox(key="listed").value == "smollm2-135m"
    assert charts(app)[0].startswith("Entropy by layer: HuggingFaceTB")


def test_a_deep_link_sets_what_is_chosen():
    sidebar = {"outcome": "correct", "first": "1", "last": "30"}
    app = opened("tokens", scan="demo-llama", readout="raw", **sidebar, **{name: str(GRID[name]) for name in GRID})
    keys = ("scan", "readout", "outcome", "first", "last", *GRID)
    assert [app.session_state[key] for key in keys] == ["demo-llama", "raw", "correct", 1, 30, *GRID.values()]
    assert grid(app)["chosen"] == {"readout": "raw", **{name: GRID[name] for name in GRID if name != "rollout"}}
    assert (grid(app)["rollout"], grid(app)["first"]) == (2, 1)


def test_the_grid_opens_on_the_norm_readout_and_other_pages_on_the_first():
    app = opened("tokens", scan="demo-llama")
    assert grid(app)["chosen"] == {"readout": "norm"}
    assert list(grid(app)["planes"]) == ["norm"]
    assert app.switch_page("views/overview.py").run().session_state["readout"] == "raw"
    app.switch_page("views/tokens.py").run().radio(key="readout").set_value("raw").run()
    app.switch_page("views/overview.py").run()
    assert grid(app.switch_page("views/tokens.py").run())["chosen"] == {"readout": "raw"}


def test_the_number_of_the_last_layer_is_the_models_own_policy():
    app = opened("tokens", scan="demo-qwen3", layer="8", position="3")
    assert grid(app)["chosen"]["layer"] == 8
    assert not refusals(app)


def test_the_table_has_a_row_for_each_rollout():
    app = opened("tokens", scan="demo-qwen3", outcome="incorrect")
    (table,) = [frame.value for frame in app.dataframe if "begins" in frame.value]
    assert set(table["reward"]) == {"incorrect"}
    assert [*table] == ["rollout", "reward", "tokens", "entropy", "highest", "settles", "line", "begins", "problem"]


def test_previous_and_next_follow_the_filtered_rollouts():
    app = opened("tokens", scan="demo-qwen3", outcome="incorrect", position="5")
    numbers = next(frame.value["rollout"].tolist() for frame in app.dataframe if "begins" in frame.value)
    assert app.button(key="previous").disabled
    app.button(key="next").click().run()
    assert (grid(app)["rollout"], app.query_params["rollout"]) == (numbers[1], str(numbers[1]))
    assert "position" not in app.query_params
    app.button(key="previous").click().run()
    assert grid(app)["rollout"] == numbers[0]


def test_a_long_response_is_sent_in_parts(monkeypatch):
    monkeypatch.setattr(payload, "MOST", 16)
    app = opened("tokens", scan="demo-qwen3", rollout="3", position="20", layer="2")
    assert (grid(app)["first"], len(grid(app)["tokens"])) == (16, 16)
    assert "Positions 16 to 31 of 0 to 45." in texts(app)
    app.button(key="after").click().run()
    assert (grid(app)["first"], grid(app)["chosen"].get("position")) == (32, None)
    assert app.button(key="after").disabled
    assert grid(app.button(key="next").click().run())["first"] == 0


@pytest.mark.parametrize("query", [{"first": "900"}, {"outcome": "correct", "rollout": "1"}])
def test_a_filter_that_leaves_nothing_can_be_cleared(query):
    app = opened("tokens", scan="demo-qwen3", **query)
    assert len(refusals(app)) == 1
    app.button(key="clear_filter").click().run()
    assert not refusals(app)
    assert grid(app)["rollout"] == int(query.get("rollout", 0))


def test_a_link_to_another_rollout_forgets_the_position():
    app = opened("tokens", scan="demo-qwen3", rollout="1", position="5")
    app.switch_page("views/geometry.py").run()
    app.query_params["rollout"] = "2"
    del app.query_params["position"]
    found = grid(app.switch_page("views/tokens.py").run())
    assert (found["rollout"], found["chosen"]) == (2, {"readout": "norm"})


def test_a_quick_second_choice_is_not_undone_by_the_address_of_the_first():
    app = opened("tokens", scan="demo-qwen3", rollout="1")
    app.button(key="next").click().run()
    app.query_params["rollout"] = "1"  # a browser that hasn't got the new address yet
    app.button(key="next").click().run()
    assert grid(app)["rollout"] == 3


def test_what_is_chosen_survives_a_change_of_page():
    app = opened("tokens", scan="demo-llama", rollout="2", layer="3")
    app.switch_page("views/flow.py").run()
    app.switch_page("views/tokens.py").run()
    assert (app.session_state["scan"], app.session_state["rollout"], app.session_state["layer"]) == ("demo-llama", 2, 3)


def test_another_scan_forgets_the_cell():
    app = opened("tokens", scan="demo-llama", rollout="2", layer="3")
    app.selectbox(key="listed").select("demo-qwen3").run()
    assert (app.session_state["scan"], app.session_state["rollout"], app.session_state["layer"]) == (
        "demo-qwen3",
        None,
        None,
    )


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"scan": "nothing"}, "There is no scan 'nothing'"),
        ({"scan": "x" * 5000}, "isn't a folder"),
        ({"scan": "/"}, "is outside the cache"),
        ({"rollout": "99"}, "This scan has no rollout 99"),
        ({"layer": "99"}, "There is no layer 99"),
        ({"position": "9999"}, "There is no position 9999"),
        ({"site": "resid_mid"}, "resid_mid was not measured"),
        ({"scan": "demo-qwen3", "site": "resid_mid", "measure": "change"}, "no entropy change at resid_mid"),
        ({"first": "900"}, "no response tokens among positions from 900"),
    ],
)
def test_an_address_of_something_missing_is_refused_in_one_sentence(query, sentence):
    (said,) = refusals(opened("tokens", **query))
    assert sentence in said


def test_rollouts_are_chosen_by_their_marks(empty_cache):
    rows = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}", "acc": n / 4, "b c": 1} for n in range(4)]
    responses = jsonl(empty_cache.parent / "r.jsonl", *rows)
    few = ["--layers", "0,3", "--readout", "raw", "--top-k", "0", "--chat-template", "none"]
    output = str(empty_cache.parent / "marked")
    assert main(["scan", "--rollouts", str(responses), *few, "--output", output]) == 0
    app = opened("tokens", scan=output)
    assert app.text_input(key="where").placeholder == "acc>=0.5"
    app.text_input(key="where").set_value("acc>=0.5; b c=1").run()
    assert grid(app)["rollout"] == 2
    app.text_input(key="where").set_value("acc>>0.5").run()
    assert "isn't a condition" in refusals(app)[0]
    app = opened("tokens", scan=output, where="acc=0.75")
    assert grid(app)["rollout"] == 3
    app = opened("tokens", scan=output, where="acc=0.75", rollout="0")
    app.button(key="clear_filter").click().run()
    assert grid(app)["rollout"] == 0
    assert app.text_input(key="where").value == ""
    assert "where" not in [box.key for box in opened("tokens").text_input]


def test_invalid_url_parameters_are_ignored():
    named = [name for names in ADDRESSES.values() for name in names if name not in ("scan", "compare", "run")]
    plain = opened("tokens")
    for absurd in ("1e400", "-inf", "nan", "-1", "", "x" * 30_000, "\0"):
        app = opened("tokens", **dict.fromkeys(named, absurd))
        assert not refusals(app), absurd[:10]
        assert (charts(app), grid(app)) == (charts(plain), grid(plain)), absurd[:10]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), [(page, name) for page, names in ADDRESSES.items() for name in names])
def test_no_url_parameter_can_break_a_page(page, name, run):
    for absurd in ABSURD:
        app = opened(page, **{"scan": "demo-qwen3", name: absurd})
        assert len(refusals(app)) < 2


@pytest.mark.parametrize(("page", "name"), [("overview", "scan"), ("training", "run"), ("steps", "study")])
def test_a_refusal_of_a_long_name_is_short(page, name):
    (said,) = refusals(opened(page, **{name: "x" * 100_000}))
    assert len(said) < 500


def test_a_page_shows_every_refusal(copied):
    record = records.read(copied / store.RECORD)
    for path in [*copied.glob("layers-*"), *copied.glob("policies-*")]:
        table = store.read_part(path)
        lost = [name for name in table.column_names if name == "kl" or name.startswith("resid_post")]
        store.write_table(path, table.drop_columns(lost))
    rewrite(copied, files={name: files.fingerprint(copied / name) for name in record["files"]})
    assert len(refusals(opened("flow", scan=str(copied)))) == 3


def test_a_list_shows_what_a_site_is_called_and_the_address_its_name():
    app = opened("flow", scan="demo-qwen3", spread="mlp_out", spread_measure="kl")
    assert charts(app)[0].startswith("KL from the model over tokens: FFN")
    assert app.selectbox(key="spread").options[5:] == ["FFN (mlp_out)", "layer output (resid_post)"]
    app.selectbox(key="spread").select("attn_out").run()
    assert app.query_params["spread"] == "attn_out"
    app.selectbox(key="spread").select("resid_post").run()
    assert "spread" not in app.query_params
    assert opened("flow", scan="demo-qwen3", spread="<b>").session_state["spread"] == "resid_post"


def test_too_few_rollouts_for_a_target_layer_are_reported_instead_of_a_table_of_dashes():
    app = opened("geometry", scan="demo-qwen3", first="50")
    assert refusals(app) == [
        "⚠ No target layer: choosing one needs at least 4 rollouts, and the entropy before and after the FFN."
    ]
    assert not app.dataframe


def test_the_layer_at_which_runs_are_compared_is_a_number_from_the_start():
    app = opened("training", run="experiments/bupo", training_against=["experiments/grpo"])
    assert app.number_input(key="training_layer").value == 6
    assert not refusals(app)


def test_a_refusal_shows_invisible_characters():
    (said,) = refusals(opened(scan="\u202e\x1b[31m\0"))
    assert "⟨U+202E⟩⟨U+001B⟩[31m⟨U+0000⟩" in said


def test_every_url_parameter_is_tested():
    trees = [ast.parse(path.read_text()) for path in [*APP.glob("*.py"), *APP.glob("views/*.py")]]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [{word.arg: ast.unparse(word.value) for word in call.keywords} for call in calls]
    numbers = [ast.unparse(call.func) in ("show.number", "choices.choose", "choices.folder") for call in calls]
    bound = [words["key"] for words, number in zip(named, numbers, strict=True) if number or "bind" in words]
    named = {name for names in ADDRESSES.values() for name in names}
    assert {ast.literal_eval(key) for key in bound if key != "key"} | {*GRID, *AGAINST} == named


def read_as(folder: Path, name: str) -> Path:
    """A scan whose norm readout is renamed to a lens."""
    for path in [*folder.glob("policies-*"), *folder.glob("layers-*")]:
        table = store.read_part(path)
        readouts = [name if readout == "norm" else readout for readout in table["readout"].to_pylist()]
        place = table.schema.names.index("readout")
        store.write_table(path, table.set_column(place, "readout", pa.array(readouts)), group="rollout")
    record = store.record(folder)
    written = {part: files.fingerprint(folder / part) for part in record["files"]}
    rewrite(folder, files=written, selection={**record["selection"], "readouts": ["raw", name]})
    return folder


@pytest.mark.parametrize(
    "page", ["overview", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flow", "geometry"))]
)
def test_a_lens_is_shown_like_any_other_readout(page, copied):
    app = opened(page, scan=str(read_as(copied, "tuned")), readout="tuned")
    assert app.session_state["readout"] == "tuned"
    shown = [said for said in charts(app) if " by readout" not in said]
    assert shown
    assert all("through the tuned lens" in said for said in shown)
    assert "the tuned lens" in str(app.radio(key="readout").proto.captions)


def test_the_grid_reads_through_a_lens(copied):
    found = grid(opened("tokens", scan=str(read_as(copied, "tuned")), readout="tuned"))
    assert found["chosen"]["readout"] == "tuned"
    assert list(found["planes"]) == ["tuned"]


def test_scans_are_compared_through_their_lenses(copied, tmp_path):
    other = Path(shutil.copytree(read_as(copied, "tuned"), tmp_path / "other"))
    app = opened("compare", scan=str(copied), readout="tuned", compare=[str(copied), str(other)])
    assert len(charts(app)) == 4
    assert all("through the tuned lens" in said for said in charts(app))


def test_the_name_of_a_lens_is_shown_literally(copied):
    name = "![x](http://evil) *b* :red[r]"
    app = opened(scan=str(read_as(copied, name)))
    (_, option), (_, caption) = app.radio(key="readout").options, app.radio(key="readout").proto.captions
    for shown in (option, caption):
        assert r"\!\[x\]\(http\:\/\/evil\) \*b\* \:red\[r\]" in shown.replace("\u2060", "")  # breaks addresses
    app.radio(key="readout").set_value(name).run()
    assert not app.exception
    assert app.session_state["readout"] == name


def test_an_unknown_readout_in_the_address_is_ignored():
    assert opened(scan="demo-qwen3", readout="<b>").session_state["readout"] == "raw"


def test_without_scans_the_page_shows_the_scan_command(monkeypatch, tmp_path):
    monkeypatch.setattr(bundle, "DATA", tmp_path)
    for page in PAGES:
        app = opened(page)
        if page not in ("training", "alignment", "prompt"):
            assert "internal-policy scan" in app.code[0].value


def test_a_truncated_part_is_named(copied):
    path = copied / "policies-00001.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    (said,) = refusals(opened(scan=str(copied)))
    assert "policies-00001.parquet is missing or cut short" in said


def test_a_part_that_cannot_be_read_is_named(copied):
    path = copied / "layers-00001.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    (said,) = refusals(opened(scan=str(copied)))
    assert "layers-00001.parquet is damaged" in said


def test_an_unknown_schema_is_refused(copied):
    rewrite(copied, schema=99)
    (said,) = refusals(opened(scan=str(copied)))
    assert "schema version 99" in said


@pytest.mark.parametrize("text", ["{", "", "[]", "null", '"x"'])
def test_a_damaged_record_is_refused(copied, text):
    (copied / store.RECORD).write_text(text)
    (said,) = refusals(opened(scan=str(copied)))
    assert "scan.json is damaged" in said


@pytest.mark.parametrize(
    ("page", "name"),
    [
        *((page, "layers-00001.parquet") for page in ("overview", "flow", "compare", "geometry")),
        *(("tokens", name) for name in ("policies-00000.parquet", "rollouts-00000.parquet", "vocabulary.parquet")),
        ("flow", "policies-00001.parquet"),
    ],
)
def test_every_page_refuses_a_file_with_one_wrong_bit_in_its_footer(copied, page, name):
    data = bytearray((copied / name).read_bytes())
    data[-len(data) // 9] ^= 4
    (copied / name).write_bytes(data)
    said = refusals(opened(page, scan=str(copied), compare=[str(copied), "demo-llama"]))
    assert said
    assert all(f"{name} is damaged" in sentence for sentence in said)


@pytest.mark.parametrize(
    "record", ["{", '{"schema": 1, "selection": [], "files": "x"}', *slow('{"schema": 1}', "null")]
)
def test_a_broken_scan_is_listed_as_broken_and_the_others_open(copied, empty_cache, record):
    shutil.copytree(copied, empty_cache / "model" / "0123456789ab")
    broken = Path(shutil.copytree(copied, empty_cache / "model" / "ba9876543210"))
    (broken / store.RECORD).write_text(record)
    app = opened()
    assert app.selectbox(key="listed").value == "model/0123456789ab"
    assert not refusals(app)
    assert "model/ba9876543210 · broken" in app.selectbox(key="listed").options


def test_an_unexpected_error_is_one_sentence_and_its_traceback_is_logged(copied, caplog, monkeypatch):
    monkeypatch.setattr(comparison, "comparable", lambda _: "x".missing)  # pyright: ignore[reportAttributeAccessIssue]
    app = AppTest.from_file(str(APP / "main.py"), default_timeout=30)
    app.query_params["compare"] = ["demo-llama", str(copied)]
    app.run()
    app.switch_page("views/compare.py").run()
    assert not app.exception
    assert refusals(app)[0].startswith("⚠ This can't be drawn (AttributeError: 'str' object has no")
    assert "Traceback" in caplog.text


def test_an_unfinished_scan_is_refused(copied):
    (copied / store.RECORD).unlink()
    (said,) = refusals(opened(scan=str(copied)))
    assert "unfinished" in said


def test_a_scan_of_the_cache_is_listed_and_opens_by_its_digest(copied, empty_cache):
    folder = Path(shutil.copytree(copied, empty_cache / "model" / "0123456789ab"))
    assert opened().selectbox(key="listed").value == "model/0123456789ab"
    assert opened(scan="0123").selectbox(key="listed").value == "model/0123456789ab"
    (folder / store.RECORD).unlink()
    assert opened().selectbox(key="listed").value == "smollm2-135m"


def hostile(folder: Path) -> None:
    """Make every text of a scan markup: names, problems and tokens."""
    vocabulary = pq.read_table(folder / store.VOCABULARY)
    tokens = [HOSTILE[n % len(HOSTILE)] for n in range(vocabulary.num_rows)]
    pq.write_table(vocabulary.set_column(1, "token", pa.array(tokens)), folder / store.VOCABULARY)
    path = folder / "rollouts-00000.parquet"
    rollouts = pq.read_table(path)
    place = rollouts.column_names.index("problem")
    pq.write_table(rollouts.set_column(place, "problem", pa.array(["<b>$x$ [a](b)"] * rollouts.num_rows)), path)
    written = {p.name: files.fingerprint(p) for p in folder.glob("*.parquet")}
    rewrite(folder, model="<img src=x onerror=alert(1)> $x$ **b**", files=written)


def test_hostile_text_is_never_markup(copied):
    hostile(copied)
    for page in PAGES:
        app = opened(page, scan=str(copied))
        marked = [text.value for kind in (app.markdown, app.caption, app.title, app.subheader) for text in kind]
        marked += [metric.value for metric in app.metric]
        assert not any(bad in text for text in marked for bad in ("<b>", "<img", "<script", "$x$", "evil.example"))
        for chart in app.get("plotly_chart"):
            spec = json.loads(chart.proto.spec)
            del spec["layout"]["meta"]  # plain text that plotly doesn't draw
            assert not any(bad in json.dumps(spec) for bad in ("<script", "<img", "$x$"))
    assert any(text.endswith("\n<b>$x$ [a](b)") for text in texts(opened("tokens", scan=str(copied))))


def unseen(folder: Path) -> None:
    """Give every text of a scan control characters, direction overrides or 100 kB."""
    bad = ["\x1b[31mred", "\u202eturned", "nul\0", "\r\b\u200b", "x" * 100_000, *HOSTILE]
    for path in [folder / store.VOCABULARY, *folder.glob("rollouts-*")]:
        table = store.read_part(path)
        for place, field in enumerate(table.schema):
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                texts = [bad[n % len(bad)] for n in range(table.num_rows)]
                table = table.set_column(place, field.name, pa.array(texts))
        pq.write_table(table, path)
    text = " ".join(bad)
    facts = dict.fromkeys(("model", "family", "dtype", "device", "created", "product"), text)
    written = {p.name: files.fingerprint(p) for p in folder.glob("*.parquet")}
    rewrite(folder, **facts, command=bad, versions={"\x1b": text}, files=written)


@pytest.mark.parametrize(
    "page", ["tokens", *(pytest.param(name, marks=pytest.mark.slow) for name in ("overview", "compare"))]
)
def test_invisible_characters_are_shown_and_long_texts_are_cut(copied, empty_cache, page):
    unseen(copied)
    shutil.copytree(copied, empty_cache / "model" / "0123456789ab")
    app = opened(page, scan="0123", compare=["model/0123456789ab", "demo-llama"])
    assert charts(app) or grid(app)
    shown = [element.value for kind in (app.text, app.markdown, app.caption, app.metric) for element in kind]
    shown += [option for box in [*app.selectbox, *app.multiselect, *app.radio] for option in box.options]
    shown += [cell for frame in app.dataframe for column in frame.value for cell in frame.value[column]]
    shown = [text for text in shown if isinstance(text, str)]
    assert not [text for text in shown if re.search(r"[\x00-\x08\x0b-\x1f\u200b\u202e]", text)]
    longest = 400_000 if page == "overview" else 20_000  # the table of settings shows texts in full
    assert max(map(len, shown)) < longest
    for chart in app.get("plotly_chart"):
        assert len(chart.proto.spec) < 400_000
        assert not re.search(r"\\u001b|\\u0000|\\u202e|\u202e", chart.proto.spec)


def test_scans_with_different_sites_are_not_compared(copied):
    record = records.read(copied / store.RECORD)
    rewrite(copied, selection={**record["selection"], "measures": ["norm"]})
    (said,) = refusals(opened("compare", compare=["demo-llama", str(copied)]))
    assert "has no entropy" in said


def test_differences_of_compared_scans_are_listed(copied):
    rewrite(copied, dtype="float32")
    assert any("precision" in text for text in texts(opened("compare", compare=["demo-llama", str(copied)])))


def test_scans_of_the_same_tokens_are_subtracted_by_layer(copied):
    found = charts(opened("compare", scan="demo-qwen3", compare=["demo-llama", str(copied)]))
    assert len(found) == 4
    assert sum("95% intervals over rollouts" in said for said in found) == 2


def test_a_scan_by_itself_is_compared_with_its_other_readout():
    app = opened("compare", scan="demo-llama", compare="demo-llama")
    assert len(charts(app)) == 4
    assert all("through the final norm · raw hidden states" in said for said in charts(app)[:2])
    assert all("A: demo-llama · through the final norm · B: demo-llama · raw" in said for said in charts(app)[2:])
    assert any(said.startswith("Entropy in B, with 95% confidence for all layers at once: ") for said in texts(app))
    assert "• A reads through the final norm, B reads raw hidden states." in texts(app)
    assert app.selectbox(key="against_list").value == "demo-llama"


def test_compared_scans_say_why_they_have_no_target_layer():
    app = opened("compare", scan="smollm2-135m", readout="raw", compare="demo-qwen3")
    said = "No layer's FFN raises entropy significantly, so there is no target layer."
    assert any(text.startswith("• ") and text.endswith(said) for text in texts(app))
    assert "A dash means that no layer's FFN" in captions(app)


def test_the_open_scan_is_compared_with_one_of_the_same_problems():
    assert opened("compare", scan="demo-llama").multiselect(key="compare").value == ["demo-qwen3"]
    app = opened("compare", scan="demo-qwen3")
    assert app.multiselect(key="compare").value == ["demo-llama"]
    app.text_input(key="scan").set_value("demo-llama").run()
    assert app.multiselect(key="compare").value == ["demo-qwen3"]
    assert app.selectbox(key="against_list").value == "demo-llama"


def test_the_second_response_is_by_default_one_with_the_same_tokens(copied):
    app = opened("compare", scan="demo-qwen3", compare=["demo-llama", str(copied)], rollout="3")
    assert app.selectbox(key="against_list").value == str(copied)
    assert app.selectbox(key="against_rollout_list").value == 3
    app.selectbox(key="rollout_list").set_value(5).run()
    assert app.selectbox(key="against_rollout_list").value == 5


def test_compared_responses_that_dont_exist_are_refused():
    for name, side in {"rollout": "A", "against_rollout": "B"}.items():
        (said,) = refusals(opened("compare", scan="demo-qwen3", **{name: "99"}))
        assert said == f"⚠ {side} has no rollout 99. Choose one from the list."


@pytest.fixture
def run(empty_cache) -> Path:
    """A training run of three layers and six steps."""
    folder = empty_cache / "training" / "one"
    folder.mkdir(parents=True)
    sites = ("resid_pre", "resid_post", "mlp_in", "mlp_out")
    index = pd.MultiIndex.from_product([range(6), range(3), sites], names=["step", "layer", "site"])
    random = np.random.default_rng(0)
    dynamics = pd.DataFrame({name: random.random(len(index)) for name in ("entropy", "cosine", "kl")}, index)
    frame = dynamics.reset_index()
    compared = (frame["site"] == "resid_post") & (frame["layer"] > 1)  # the others have no values, as in real runs
    frame[["cosine", "kl"]] = frame[["cosine", "kl"]].where(compared)
    frame.to_parquet(folder / "dynamics.parquet")
    metrics = {
        "step": range(6),
        "reward": random.random(6),
        "entropy": 1.0,
        "internal_entropy": [1.0] * 3 + [np.nan] * 3,
    }
    phase, target = ["internal"] * 3 + ["final"] * 3, ["1.resid_post"] * 3 + ["final"] * 3
    others = {"clip_fraction": 0.0, "perplexity": [np.nan, 2.0] * 3, "phase": phase, "target": target}
    pd.DataFrame({**metrics, **others}).to_parquet(folder / "metrics.parquet")
    return folder


def test_a_training_run_of_the_cache_is_drawn(run):
    app = opened("training")
    assert len(charts(app)) == 3
    assert charts(app)[1].startswith("Layer 1 compared with later layers")
    assert app.selectbox(key="listed_run").value == "training/one"
    app.selectbox(key="training_measure").select("change").run()
    assert charts(app)[0].startswith("Entropy change by step")
    pd.DataFrame({"label": "BuPO", "k": [1, 2], "mean": [0.1, 0.2], "low": 0.0, "high": 1.0}).to_parquet(
        run / "pass_at_k.parquet"
    )
    assert len(charts(opened("training", run=str(run)))) == 4


@pytest.mark.parametrize("measure", ["entropy", "kl", *slow("cosine", "change")])
def test_every_measure_of_a_training_run_is_drawn_where_it_was_measured(run, measure):
    app = opened("training", training_measure=measure)
    assert not refusals(app)
    sites = {"entropy": ["resid_post", "resid_pre", "mlp_in", "mlp_out"], "change": ["resid_post", "mlp_out"]}
    shown = [theme.site_label(site) for site in sites.get(measure, ["resid_post"])]
    assert app.selectbox(key="training_site").options == shown
    title = {"entropy": "Entropy", "change": "Entropy change", "kl": "KL from the trained layer"}
    assert charts(app)[0].startswith(title.get(measure, "Cosine with the trained layer"))


def test_runs_are_drawn_in_one_figure_smoothed_and_as_differences_from_step_0(run):
    shutil.copytree(run, run.parent / "two")
    app = opened("training", run="training/one", training_against="training/two", training_difference="true")
    assert not refusals(app)
    titles = [said.split(":")[0] for said in charts(app)]
    assert titles == [
        "Δ entropy since step 0",
        "Entropy by step",
        "Layer 1 and later layers, Δ since step 0",
        "Training runs",
    ]
    app.select_slider(key="training_smooth").set_value(5).run()
    assert charts(app)[3] == "Training runs: 2 runs · mean of the last 5 steps"


def test_the_exams_of_a_run_are_drawn_beside_its_reward(run):
    ends = dict.fromkeys((f"{name}{end}" for name in SHARES for end in ("", "_low", "_high")), 0.25)
    exams = pd.DataFrame({"step": [0, 3, 5], "problems": "mine", "samples": 8, **ends})
    exams.to_parquet(run / "evaluations.parquet")
    (run / "dynamics.parquet").unlink()
    shutil.copytree(run, run.parent / "two")
    app = opened("training", run="training/one")
    assert [said.split(":")[0] for said in charts(app)] == ["Exam by step", "Training"]
    assert "Avg@8 on the exam went from 25.0% (step 0) to 25.0% (step 5)." in texts(app)
    app = opened("training", run="training/one", training_against="training/two")
    assert charts(app)[0].startswith("Exam by step: 2 runs")


def test_a_run_whose_layers_were_not_scanned_still_has_its_steps(run):
    (run / "dynamics.parquet").unlink()
    assert [said.split(":")[0] for said in charts(opened("training"))] == ["Training"]


def test_bundled_runs_are_listed_and_opened_by_their_name(run, monkeypatch, tmp_path):
    shutil.copytree(run, tmp_path / "data" / "experiments" / "bupo")
    monkeypatch.setattr(bundle, "DATA", tmp_path / "data")
    app = opened("training", run="experiments/bupo")
    assert app.selectbox(key="listed_run").options == ["training/one", "experiments/bupo"]
    assert app.selectbox(key="listed_run").value == "experiments/bupo"
    assert "experiments/bupo · 5 steps, 3 on 1.resid_post" in charts(app)[2]
    app.selectbox(key="listed_run").select("training/one").run()
    assert app.session_state["run"] == "training/one"
    assert "training/one" in charts(app)[0]


def test_a_run_that_is_not_listed_is_named_in_the_list(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "elsewhere" / "three")
    app = opened("training", run=str(folder))
    assert app.selectbox(key="listed_run").value == str(folder)
    app.selectbox(key="listed_run").select("training/one").run()
    assert app.session_state["run"] == "training/one"


def kept(run: Path, responses: list[str]) -> None:
    """Keep responses to one problem at steps 1 and 10."""
    rows = [(step, "What is $x$?", text, 1.0, -0.5) for step in (1, 10) for text in responses]
    columns = ["step", "problem", "response", "reward", "advantage"]
    pd.DataFrame(rows, columns=columns).to_parquet(run / "samples.parquet")


def test_the_responses_of_a_step_are_shown_as_plain_text(run):
    responses = [*HOSTILE, "\x1b[31mred\x07", ""]
    kept(run, responses)
    app = opened("training", training_step="1")
    assert app.selectbox(key="training_step").options == ["1", "10"]
    shown = ["".join(text.split()) for text in texts(app)]
    assert [text for text in ("What is $x$?", *HOSTILE[:4], HOSTILE[7]) if "".join(text.split()) not in shown] == []
    assert "⟨U+001B⟩[31mred⟨U+0007⟩" in shown
    assert "(empty)" in shown
    assert captions(app).count("Reward 1, advantage -0.50") == len(responses)


def test_a_damaged_table_of_responses_is_refused_on_the_page(run):
    (run / "samples.parquet").write_bytes(b"PAR1")
    assert any("samples.parquet" in text for text in refusals(opened("training")))


def recorded(run: Path, **facts: str) -> None:
    (run / "run.json").write_text(json.dumps(facts))


def test_a_run_shows_the_alignment_of_the_model_that_it_starts_from(run):
    identity = alignment.record(ALIGNED)["asked"]["identity"]
    recorded(run, model="demo-qwen3", identity=identity)
    app = opened("training")
    assert charts(app)[-1].startswith("Gain of a first step by layer: demo-qwen3")
    assert any("layer 4 is best worth training first" in text for text in texts(app))


@pytest.mark.parametrize(
    ("model", "command"),
    [
        ("demo-llama", "internal-policy align --model demo-llama"),
        ("./my model", "internal-policy align --model './my model' --problems problems.jsonl"),
    ],
)
def test_a_run_of_a_model_without_alignment_shows_the_command(run, model, command):
    recorded(run, model=model, identity="sha256 of another")
    app = opened("training")
    assert len(charts(app)) == 3
    assert command in [code.value for code in app.code]


def test_a_run_whose_record_is_damaged_is_drawn_without_alignment(run):
    (run / "run.json").write_text("{")
    app = opened("training")
    assert len(charts(app)) == 3
    assert any("run.json is damaged" in text for text in refusals(app))


def test_the_alignments_are_drawn_by_name(empty_cache):
    app = opened("alignment")
    assert app.selectbox(key="alignment").value == "demo-llama-alignment"
    app.selectbox(key="alignment").select("demo-qwen3-alignment").run()
    (said,) = charts(app)
    assert "demo-qwen3 · raw and through the final norm · 96 prompts x 8 responses" in said
    shutil.copytree(ALIGNED, empty_cache / "demo-qwen3" / "0123456789ab")
    assert opened("alignment").selectbox(key="alignment").value == "0123456789ab"
    (empty_cache / "demo-qwen3" / "0123456789ab" / "alignment.json").write_text("{")
    assert len(charts(opened("alignment", alignment="0123456789ab"))) == 1


def test_the_site_of_an_alignment_is_chosen(empty_cache):
    folder = Path(shutil.copytree(ALIGNED, empty_cache / "demo-qwen3" / "0123456789ab"))
    table = alignment.table(folder)
    pd.concat([table, table.assign(site="mlp_out")]).to_parquet(folder / "alignment.parquet")
    assert "FFN" in charts(opened("alignment", alignment_site="mlp_out"))[0]


def test_without_training_runs_the_page_says_what_one_is(monkeypatch, tmp_path):
    monkeypatch.setattr(bundle, "DATA", tmp_path)
    assert any("metrics.parquet" in text for text in texts(opened("training")))


@pytest.mark.parametrize("harm", ["missing", "damaged", "columns", "empty"])
def test_a_training_run_that_cannot_be_read_is_refused(run, harm):
    path = run / "dynamics.parquet"
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(b"PAR1")
    elif harm == "columns":
        pd.DataFrame({"x": [1]}).to_parquet(path)
    else:
        pd.read_parquet(path).head(0).to_parquet(path)
    assert len(refusals(opened("training", run=str(run)))) == 1


@pytest.fixture
def prompt(monkeypatch):
    monkeypatch.syspath_prepend(str(APP))
    return importlib.import_module("views.prompt")


@pytest.mark.parametrize("model", ["", "Qwen/Qwen3-4B", "--help", "x" * 5000, "a\0b", "~nobody/x", "."])
def test_only_local_models_are_accepted(prompt, model):
    with pytest.raises(InputError, match="isn't a model folder"):
        prompt.checked(model)


def submit(app: AppTest) -> AppTest:
    return next(button for button in app.button if button.label == "Answer").click().run()


def test_an_empty_prompt_is_refused_at_once():
    app = opened("prompt")
    app.text_area(key="prompt_answer").input(" \n")
    assert refusals(submit(app)) == ["⚠ The prompt is empty. Type one."]


def test_the_prompt_page_says_what_to_install_without_torch(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "torch" else name)
    assert refusals(opened("prompt")) == [
        "⚠ This needs torch, which isn't installed. Run: pip install 'internal-policy[models]'"
    ]


def test_the_dashboard_never_reaches_torch(tmp_path):
    code = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        f"app = AppTest.from_file({str(APP / 'main.py')!r}, default_timeout=30).run()\n"
        f"for page in {PAGES[1:]!r}: app.switch_page(f'views/{{page}}.py').run(); assert not app.exception\n"
        "print({'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_page_of_steps_plays_a_study_of_the_cache(empty_cache):
    layers, place = (
        pa.concat_tables(store.pieces(bundle.DATA / "scans" / "demo-qwen3", "layers")),
        empty_cache / "studies",
    )
    study.begin(place / "mine-123456", {"checkpoints": "x"}, "x", "given")
    for step in (10, 20):
        facts = store.record(bundle.DATA / "scans" / "demo-qwen3")
        study.add(place / "mine-123456", step, f"checkpoint-{step}", facts, layers, None)
    app = opened("steps")
    assert not app.exception
    assert app.selectbox(key="listed_study").value == "studies/mine-123456"
    assert any("Entropy is the same at step 20 against step 10" in text.value for text in app.text)
    assert not refusals(app)
    app.selectbox(key="steps_readout").select("norm").run()
    assert app.query_params["steps_readout"] == "norm"
    assert not refusals(opened("steps", study="experiments/bupo"))
