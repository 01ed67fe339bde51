"""The documentation's examples run, and it covers all commands, columns and figures."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

import internal_policy as ip
from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli import parsing
from internal_policy.cli.commands import COMMANDS
from internal_policy.look import known
from internal_policy.measure.metrics import CONTROLS, MEASURES
from internal_policy.measure.sites import ONLY_AT, SITES, WITH_FINAL
from internal_policy.models.rows import FAMILIES
from internal_policy.scans import estimate, store
from internal_policy.scans.selection import Selection, plan
from internal_policy.tasks.pass_at_k import curves
from internal_policy.tasks.problems import Message, Problem
from internal_policy.train import exam

ROOT = Path(__file__).parent.parent
WRITTEN = [ROOT / "README.md", ROOT / "AGENTS.md", *ROOT.glob("docs/*.md")]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in WRITTEN}
"""Page -> its Markdown. Its blocks of `python` are run, those of `py` are not; commands in `bash` must parse."""
README = PAGES["README.md"]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[str]:
    """The `internal-policy` commands in a page's blocks of bash, without comments."""
    lines = "\n".join(blocks("bash", page)).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+#.*", "", line) for line in lines if re.match(r"(\S*/)?internal-policy ", line)]
    return [line for command in found for line in re.split(r" && | \| ", command) if "internal-policy" in line]


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks("python", page)])
def test_the_python_of_a_page_runs(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path))
    names: dict = {}
    for block in blocks("python", PAGES[name]):
        exec(block, names)
    if name == "docs/look.md":
        assert len(names["cells"]) == names["responses"]["response_ids"].map(len).sum() * 9
    if name == "docs/scan.md":
        assert "5.attn_out torch.Size([1, " in capsys.readouterr().out


SHOWN = sorted({(name, command) for name, page in PAGES.items() for command in commands(page)})


@pytest.mark.parametrize(("page", "command"), SHOWN)
def test_a_command_on_a_page_parses(page, command):
    name, *arguments = shlex.split(command)[1:]
    if name != "--help":
        parsing.parse(COMMANDS, [name, *arguments])


def test_the_quickstart_shows_what_lens_prints(capsys):
    page = PAGES["docs/quickstart.md"]
    (shown,), (command, *_) = blocks("text", page), (command for command in commands(page) if " lens " in command)
    assert main(shlex.split(command)[1:]) == 0
    printed, blank = (
        capsys.readouterr().out,
        re.compile(r"\d| +$|\n(?= *\n)", re.MULTILINE),
    )  # digits differ by processor
    assert blank.sub("", printed).split("\n") == blank.sub("", shown).split("\n")


def test_the_pages_name_every_command():
    named = {name for page in PAGES.values() for name in re.findall(r"`internal-policy ([a-z][a-z-]*)", page)}
    assert named == set(COMMANDS)


LINKS = [
    (name, link)
    for name, page in PAGES.items()
    for link in re.findall(r"\]\(([^)\s]+)\)", page)
    if not link.startswith(("http", "#"))
]


@pytest.mark.parametrize(("name", "link"), LINKS)
def test_a_link_of_a_page_leads_to_a_file(name, link):
    file, _, anchor = link.partition("#")
    target = (ROOT / name).parent / file
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


QUOTED = [
    part
    for title in re.findall(r'^### "(.*)"$', PAGES["docs/troubleshooting.md"], re.M)
    for part in title.split(" ... ")
]


def literals(source: str) -> Iterator[str]:
    """The strings in a Python file, the formatted ones with a NUL for each value."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_messages_quoted_in_troubleshooting_exist():
    files = (file for wing in ("internal_policy", "app") for file in (ROOT / wing).rglob("*.py"))
    written = [text for path in files for text in literals(path.read_text(encoding="utf-8"))]
    assert [part for part in QUOTED if not any(part in text for text in written)] == []


def test_the_citation_has_what_the_format_requires():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}
    assert cited["version"] == ip.__version__
    assert f"version = {{{ip.__version__}}}" in README
    (paper,) = cited["references"]
    assert paper["url"].endswith("2512.19673")
    assert f"title   = {{{paper['title']}}}" in README
    assert {*paper["authors"][0]} == {"given-names", "family-names"}


def test_the_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_the_page_of_the_architecture_names_every_folder_of_the_package():
    folders = {path.parent.name for path in (ROOT / "internal_policy").glob("*/__init__.py")}
    assert {name for name in folders if not re.search(rf"\b{name}\b", PAGES["docs/architecture.md"])} == set()


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = [block.strip() for block in blocks("bash") if "pytest" in block]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


COLUMNS = (ROOT / "docs" / "columns.md").read_text()
SCAN, RUN = bundle.DATA / "scans" / "demo-qwen3", bundle.DATA / "experiments" / "bupo"


OF_SOME = {"metrics.parquet": {"kl", "mfu", "reward/NAME", "alignment", "resampled", "draws"}}
"""File -> columns that the bundled one doesn't have, because its run didn't ask for them."""


def described(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of docs/columns.md, a list of cells each."""
    section = COLUMNS.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return rows[2:]  # below the header


def names(heading: str) -> set[str]:
    return {row[0].strip("`") for row in described(heading)}


@pytest.mark.parametrize(
    ("heading", "path"),
    [
        ("rollouts-*.parquet", SCAN / "rollouts-00000.parquet"),
        ("layers-*.parquet", SCAN / "layers-00000.parquet"),
        ("vocabulary.parquet", SCAN / "vocabulary.parquet"),
        ("effects-*.parquet", bundle.DATA / "scans" / "demo-qwen3-ablation" / "effects-00000.parquet"),
        ("metrics.parquet", RUN / "metrics.parquet"),
        ("dynamics.parquet", RUN / "dynamics.parquet"),
    ],
)
def test_the_columns_of_a_file_are_documented_with_their_types(heading, path):
    written = {field.name: str(field.type) for field in pq.read_schema(path)}
    words = {"double": "float64", "large_string": "string", "list<element: int32>": "list of int32"}
    rows = {row[0].strip("`"): row[1] for row in described(heading)}
    assert {name: kind for name, kind in rows.items() if name not in OF_SOME.get(heading, ())} == {
        name: words.get(kind, kind) for name, kind in written.items()
    }


def test_the_columns_of_policies_are_documented_with_their_sites():
    sites = {"all": (*SITES, "final"), "all but final": SITES}
    expected = set()
    for name, *_, where in described("policies-*.parquet"):
        at = sites.get(where, where.split(", ")) if where else ("",)
        expected |= {name.strip("`").replace("SITE", site) for site in at}
    assert expected == set(pq.read_schema(SCAN / "policies-00000.parquet").names)


def test_the_columns_of_controls_are_documented_with_their_sites():
    sites = {"all": WITH_FINAL, "all but final": SITES}
    found = {row[0].strip("`"): sites.get(row[-1], tuple(row[-1].split(", "))) for row in controls()}
    assert found == {f"SITE.{name}": ONLY_AT.get(name, WITH_FINAL) for name in CONTROLS}


def controls() -> list[list[str]]:
    """The rows of the table of controls in docs/columns.md."""
    section = COLUMNS.partition("\n#### With --controls\n")[2].partition("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return rows[2:]


def test_the_columns_of_the_exported_tokens_are_documented_with_their_types():
    exported = next(known.tokens(SCAN)).schema
    assert [(row[0].strip("`"), row[1]) for row in described("export --table tokens")] == [
        (field.name, str(field.type).replace("float", "float32") if field.type == "float32" else str(field.type))
        for field in exported
    ]


def test_the_columns_of_pass_at_k_are_documented():
    assert names("pass_at_k.parquet") == {"label", "problems", *curves([1, 0], 2).columns}


def test_the_columns_of_an_exam_are_documented_with_their_types(tmp_path):
    problem = Problem((Message(role="user", content="1 + 1"),), "2")
    rows = exam.results(exam.Exam({"a": [problem]}, samples=2), 0, ([1], [0]), pd.DataFrame()).assign(seconds=1.0)
    words = {"str": "string", "object": "list of int64"}
    assert [(row[0].strip("`"), row[1]) for row in described("evaluations.parquet")] == [
        (column, words.get(str(kind), str(kind))) for column, kind in rows.dtypes.items()
    ]


@pytest.mark.parametrize("name", ["means", "changes", "stages", "targets", "tokens"])
def test_the_columns_of_a_frame_of_a_scan_are_documented_with_their_types(name):
    frame = getattr(ip.open_scan("demo-qwen3"), name)()
    words = {"str": "string", "object": "list"}
    assert [(row[0].strip("`"), row[1]) for row in described(f"scan.{name}()")] == [
        (column, words.get(str(kind), str(kind))) for column, kind in frame.dtypes.items()
    ]


@pytest.mark.parametrize("name", ["verdicts", "results", "controls"])
def test_the_columns_of_a_check_are_documented_with_their_types(name):
    frame = getattr(ip.open_scan("demo-qwen3").check(), name)
    words = {"str": "string"}
    assert [(row[0].strip("`"), row[1]) for row in described(f"scan.check().{name}")] == [
        (column, words.get(str(kind), str(kind))) for column, kind in frame.dtypes.items()
    ]


def test_the_columns_of_a_run_are_documented():
    run = ip.open_run("experiments/bupo")
    assert names("dynamics.parquet") | names("run.dynamics()") == {*run.dynamics().columns}
    assert names("metrics.parquet") - OF_SOME["metrics.parquet"] == {*run.metrics().columns}


def test_the_columns_of_a_study_are_documented():
    study = ip.open_study("experiments/bupo")
    assert [row[0].strip("`") for row in described("study.means()")] == [*study.means()]
    assert names("study.means()") | names("study.since()") == {*study.since()}


def test_the_rollouts_of_a_scan_have_the_columns_of_the_file_and_tokens():
    assert {*ip.open_scan("demo-qwen3").rollouts.columns} == {*names("rollouts-*.parquet"), "tokens"}


OPENED = {
    "scan": ip.open_scan("demo-qwen3"),
    "found": ip.open_alignment("demo-qwen3-alignment"),
    "run": ip.open_run("experiments/bupo"),
}
"""What has figures, by what the pages call it."""


@pytest.mark.parametrize("name", OPENED)
def test_every_figure_has_a_call_on_a_page(name):
    figures = {name for name in dir(OPENED[name].plot) if not name.startswith("_")}
    assert set(re.findall(rf"{name}\.plot\.([a-z_]+)\(", "\n".join(PAGES.values()))) == figures


LARGE = {
    "Llama-3.1-8B": ("llama", 32, 4096, 14_336, 32, 128_256),
    "Qwen3-8B": ("qwen3", 36, 4096, 12_288, 32, 151_936),
    "Llama-3.1-70B": ("llama", 80, 8192, 28_672, 64, 128_256),
}
"""Model -> its family, layers, width, width of an FFN, attention heads (8 for keys) and vocabulary."""
CHOICES = {
    "everything (the default)": (("raw", "norm"), MEASURES, 5),
    "`--readout raw`": (("raw",), MEASURES, 5),
    "`--readout raw --measures entropy,kl --top-k 0`": (("raw",), ("entropy", "kl"), 0),
}
TFLOPS = 425
"""TFLOP per second of one H200 with all measures and top 5, in docs/benchmarks.md."""


def cost(model: str, choice: str) -> str:
    """The row of docs/scaling.md about a million response tokens."""
    family, layers, width, ffn, heads, vocabulary = LARGE[model]
    shape = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": ffn, "head_dim": 128}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": vocabulary}
    config = AutoConfig.for_model(FAMILIES[family].model_type or family, **shape)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    selection = Selection(tuple(range(layers)), SITES, *CHOICES[choice])
    measured, _ = estimate.policies_of(selection, plan(selection, dict.fromkeys(range(layers), SITES)))
    products = measured - len(selection.readouts) + 1  # the final policy is the same in every readout
    unembedding, reading = products * 2 * width * vocabulary / 1e9, 2 * estimate.active_weights(empty) / 1e9
    minutes = (unembedding + reading) * 1000 / TFLOPS / 60
    disk = selection.disk_bytes(10**6) / 1e9
    cells = (model, choice, products, f"{unembedding:,.0f}", f"{reading:.0f}", f"{minutes:.0f} min", f"{disk:.1f} GB")
    return f"| {' | '.join(map(str, cells))} |"


def test_the_costs_of_a_million_tokens_are_those_of_the_code():
    page = PAGES["docs/scaling.md"]
    assert [cost(model, choice) for model in LARGE for choice in CHOICES if cost(model, choice) not in page] == []
    (fast,) = re.findall(r"\*\*ours\*\*: all measures, top 5 \| \d+ \| (\d+) \|", PAGES["docs/benchmarks.md"])
    assert fast == str(TFLOPS)


def test_the_share_of_the_disk_that_compression_leaves_is_that_of_a_bundled_scan():
    record = store.record(SCAN)
    fields: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in record["selection"].items()}
    selection = Selection(**fields)
    written = sum(path.stat().st_size for path in store.parts(SCAN, "policies"))
    share = written / selection.disk_bytes(record["tokens"])
    assert f"took {share:.0%} of that" in PAGES["docs/scaling.md"]
