"""The card of a scan: the README.md of its data set on the Hugging Face Hub."""

import json
from collections.abc import Mapping
from typing import Any

from internal_policy.errors import counted, joined
from internal_policy.look import findings, summary, view
from internal_policy.look.markdown import inline, line, table
from internal_policy.look.view import View
from internal_policy.measure.sites import WITH_FINAL
from internal_policy.scans import store
from internal_policy.scans.records import RECORD, VOCABULARY

FIGURE = "flow.png"
"""File with the figure of the entropy by layer, beside the card."""
PAPER = "https://arxiv.org/abs/2512.19673"
LISTED = 60
"""The most files whose checksums the card lists; scan.json lists all."""
TABLES = {
    "layers": "a rollout, readout, layer and site: means over its tokens",
    "rollouts": "a response: prompt, token ids, text and reward",
    "policies": "a token, readout and layer, with a column for each site and measure",
    "vocabulary": "a token id and its text",
}
"""Table -> what a row of it is; the first is the one that the Hub shows first."""
LOCAL = ("scan", "shown here")
"""Entries of the provenance that only mean something where the scan is."""


def markdown(one: View, repository: str, licence: str) -> str:
    """The card of a whole scan, for the data set `repository`. `licence` is that of its texts, as the Hub names it.

    The figure FIGURE belongs beside it, if the entropy was measured. Raises InputError for a broken scan.
    """
    record = store.record(one.source)
    return "\n".join(
        [
            *_front(record, licence),
            f"# Internal policies of {inline(record['model'])}",
            "",
            *_introduction(record),
            *_flow(one, record),
            *_opening(repository),
            *_tables(record),
            *_layers(one, record),
            "## How it was measured",
            "",
            *table(["", ""], [[k, v] for k, v in summary.provenance(one).items() if k not in LOCAL], words=2),
            "",
            *_licence(record, licence),
            *_checksums(record),
        ]
    )


def _front(record: Mapping[str, Any], licence: str) -> list[str]:
    """The metadata, by which the Hub's viewer and `datasets` find each table."""
    name = json.dumps(line(f"Internal policies of {record['model']}"), ensure_ascii=False)  # JSON is YAML
    lines = ["---", f"license: {licence}", f"pretty_name: {name}"]
    lines += ["tags:", "- internal-policy", "- interpretability", "- logit-lens", "- entropy", "configs:"]
    for number, name in enumerate(TABLES):
        lines += [f"- config_name: {name}"] + ["  default: true"] * (number == 0)
        lines += [f"  data_files: {VOCABULARY if name == 'vocabulary' else f'{name}-*.parquet'}"]
    return [*lines, "---", ""]


def _introduction(record: Mapping[str, Any]) -> list[str]:
    selection = record["selection"]
    sites = [site for site in WITH_FINAL if site in {*selection["sites"], "final"}]
    return [
        f"What every layer, attention block and FFN of {inline(record['model'])} would say next, and how sure it is: "
        f"measured by internal-policy at each of {counted(record['tokens'], 'token')} of "
        f"{counted(record['rollouts'], 'response')}, after [arXiv 2512.19673]({PAPER}).",
        "",
        f"- {inline(findings.layers_in_words(sorted(selection['layers'])).capitalize())} of {record['n_layers']}",
        f"- Sites: {inline(', '.join(sites))}",
        f"- Readouts: {inline(joined([view.how(name) for name in selection['readouts']]))}",
        f"- Measures: {inline(', '.join(selection['measures']))}",
        "",
    ]


def _flow(one: View, record: Mapping[str, Any]) -> list[str]:
    """The figure, and what the scan shows."""
    said = [f"- {inline(sentence)}" for sentence in findings.findings(one).sentences]
    if "entropy" in record["selection"]["measures"]:
        return [f"![Entropy by layer, {view.how(one.readout)}]({FIGURE})", "", *said, ""]
    return [*said, ""]


def _opening(repository: str) -> list[str]:
    address = f"hf://datasets/{repository}"
    return [
        "## Open it",
        "",
        "```bash",
        f"internal-policy show {address}",
        f"internal-policy dashboard --scan {address}",
        "```",
        "",
        "```python",
        "import internal_policy as ip",
        "",
        f'scan = ip.open_scan("{address}")',
        "```",
        "",
        "Or without internal-policy:",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'layers = load_dataset("{repository}", "layers", split="train")',
        "```",
        "",
    ]


def _tables(record: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, what in TABLES.items():
        files = [known for file, known in record["files"].items() if file.partition("-")[0].partition(".")[0] == name]
        size = sum(known["bytes"] for known in files)
        rows.append([name, what, counted(len(files), "file"), f"{size / 1e6:,.2f} MB"])
    return ["## Tables", "", *table(["table", "a row is", "", ""], rows, words=2), ""]


def _layers(one: View, record: Mapping[str, Any]) -> list[str]:
    """The table by layer, if the entropy was measured."""
    if "entropy" not in record["selection"]["measures"]:
        return []
    few = {*summary.BRIEF} & {*record["selection"]["sites"]}
    headings, *rows = summary.cells(summary.by_layer(one, sites=summary.BRIEF) if few else summary.by_layer(one))
    said = f"Mean entropy in nats and its change, {view.how(one.readout)}. Layers count from 0."
    return ["## Entropy by layer", "", said, "", *table(headings, rows), ""]


def _licence(record: Mapping[str, Any], licence: str) -> list[str]:
    return [
        "## Texts and licence",
        "",
        "The table rollouts has the prompts and responses in full. Their licence, as named by who uploaded them: "
        f"{licence}. The texts of tokens in {VOCABULARY} come from the tokenizer of {inline(record['model'])}, and are "
        "under its licence.",
        "",
    ]


def _checksums(record: Mapping[str, Any]) -> list[str]:
    """The SHA-256 of each table, of the first ones if there are many."""
    known = [*record["files"].items()][:LISTED]
    rest = len(record["files"]) - len(known)
    more = [f"{RECORD} has those of {counted(rest, 'more file')}.", ""] if rest else []
    rows = [[name, about["sha256"], f"{about['bytes']:,}"] for name, about in known]
    check = f"`internal-policy verify` compares each file with its SHA-256 in {RECORD}."
    return ["## Checksums", "", check, "", *table(["file", "SHA-256", "bytes"], rows, words=2), "", *more]
