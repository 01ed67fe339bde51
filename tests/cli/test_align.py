"""`align` compares the gradients of a model's policies, keeps the result, and refuses what can't be measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import SUMS, jsonl, random_rollout

from internal_policy.__main__ import main
from internal_policy.look import alignment
from internal_policy.tasks.rollouts import read_rollouts, write_rollouts


@pytest.fixture(scope="module")
def responses(tmp_path_factory) -> Path:
    """Responses with rewards to 6 prompts, each with spread."""
    path = tmp_path_factory.mktemp("align") / "rollouts.parquet"
    made = []
    for prompt in range(6):
        ids = random_rollout(4, 1, seed=prompt).prompt_ids
        for sample in range(2):
            one = random_rollout(4, 5, seed=50 + 2 * prompt + sample)
            made.append(replace(one, prompt_ids=ids, sample=sample, answer="1", reward=float(sample)))
    write_rollouts(path, made)
    return path


@pytest.fixture(scope="module")
def once(tmp_path_factory, folder, responses) -> Path:
    """The alignment of a tiny model."""
    place = tmp_path_factory.mktemp("aligned") / "alignment"
    command = ["align", "--model", str(folder), "--rollouts", str(responses), "--blocks", "4", "-o", str(place)]
    assert main(command) == 0
    return place


def test_an_alignment_is_printed_listed_shown_read_again_and_removed(here, folder, responses, capsys):
    command = ["align", "--model", str(folder), "--rollouts", str(responses), "--layers", "0,-1", "--readout", "norm"]
    assert main([*command, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert {(row["layer"], row["readout"]) for row in first["rows"]} == {(0, "norm"), (2, "norm")}
    assert (first["prompts"], first["with_spread"], first["responses"], first["blocks"]) == (6, 6, 12, 6)
    assert first["suggested"][0]["layer"] in (0, None)
    assert not first["cached"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "Read from the cache" in printed.err
    assert "6 prompts, 6 with responses of different rewards; 12 responses." in printed.out
    name = Path(first["alignment"]).name
    assert f"internal-policy plot {name} alignment -o alignment.html" in printed.out
    assert main(["ls"]) == 0
    assert name in capsys.readouterr().out
    assert main(["show", name]) == 0
    assert capsys.readouterr().out == printed.out
    assert main(["rm", name, "--yes"]) == 0
    assert not Path(first["alignment"]).exists()


def test_responses_are_sampled_and_kept(here, folder, monkeypatch, capsys):
    from internal_policy.tasks import marking

    monkeypatch.setattr(marking, "mark", lambda text, _: float(len(text) % 2))
    problems = jsonl(here / "problems.jsonl", *SUMS)
    command = ["align", "--model", str(folder), "--problems", str(problems), "--limit", "8", "--samples", "4"]
    command += ["--max-new-tokens", "4", "--layers", "0", "--readout", "raw", "-o", "found"]
    assert main(command) == 0
    assert len(pq.read_table("found/rollouts.parquet")) == 32


def test_an_interrupted_command_continues_with_the_responses_that_it_has(here, folder, monkeypatch, capsys):
    from internal_policy.scans import sampling
    from internal_policy.tasks import marking
    from internal_policy.train import align

    monkeypatch.setattr(marking, "mark", lambda text, _: float(len(text) % 2))
    problems = jsonl(here / "problems.jsonl", *SUMS)
    command = ["align", "--model", str(folder), "--problems", str(problems), "--limit", "8", "--samples", "4"]
    command += ["--max-new-tokens", "4", "--layers", "0", "--readout", "raw", "-o", "found"]
    with monkeypatch.context() as patch:
        patch.setattr(align, "align", interrupted)
        assert main(command) == 130
    assert "Finished work is kept. Continue with:" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.setattr(sampling, "generate", interrupted)  # nothing is left to sample
    assert main(command) == 0
    assert len(pq.read_table("found/rollouts.parquet")) == 32


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_columns_are_documented_with_their_types(once):
    page = (Path(__file__).parents[2] / "docs" / "columns.md").read_text()
    section = page.partition("\n### alignment.parquet\n")[2].partition("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    named = {name.strip("` "): row[1] for row in rows[2:] for name in row[0].split(",")}
    words = {"double": "float64", "list<element: double>": "list of float64", "large_string": "string"}
    kinds = {field.name: str(field.type) for field in pq.read_schema(once / alignment.TABLE)}
    assert named == {name: words.get(kind, kind) for name, kind in kinds.items()}


def row(layer: int, mean: float, cost: float, left_out: list[float], low: float = 0.1) -> dict[str, Any]:
    of = {"layer": layer, "site": "resid_post", "readout": "raw", "cost": cost, "measure": "gain_in_batch"}
    return of | {"mean": mean, "low": low, "high": 1.0, "left_out": left_out}


def test_the_layer_below_the_last_with_the_largest_gain_for_its_cost_is_suggested():
    steady = [0.0, 0.01, -0.01, 0.0]
    rows = [
        row(0, 0.10, 0.4, [0.1 + x for x in steady]),
        row(1, 0.50, 0.6, [0.5 + x for x in steady]),
        row(2, 0.60, 0.8, [0.60, 0.75, 0.45, 0.60]),  # not surely worth less
        row(3, 0.99, 1.0, [0.99] * 4),
    ]
    found = alignment.best(pd.DataFrame(rows), 4)
    assert found is not None
    assert (found.layer, found.gain, found.alike) == (1, 0.5, (2,))
    assert found.worth == pytest.approx(0.5 / 0.6)
    uncertain = pd.DataFrame([{**one, "low": -0.1} for one in rows])
    assert alignment.best(uncertain, 4) is None
    assert "none is suggested" in alignment.sentences(uncertain, 4)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blocks", "2"], "--blocks is 2; it must be 4 or more."),
        (["--sites", "attn_in"], "no site 'attn_in'"),
        (["--layers", "7"], "7"),
        (["--samples", "4"], "--samples has no effect with --rollouts"),
        (["--samples", "1"], "--samples is 1; it must be 2 or more."),
    ],
)
def test_what_cannot_be_measured_is_refused(here, folder, responses, options, message, capsys):
    assert main(["align", "--model", str(folder), "--rollouts", str(responses), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--sites", "--layers"])
def test_a_hook_point_that_the_model_lacks_is_refused_before_responses_are_sampled(here, folder, option, capsys):
    """The rewards of these samples would be refused too."""
    assert main(["align", "--model", str(folder), "--limit", "1", "--samples", "2", option, "99"]) == 2
    assert "99" in capsys.readouterr().err


def test_responses_without_rewards_are_refused(here, folder, responses, tokenizer, capsys):
    made = [replace(one, reward=None, answer=None) for one in read_rollouts(responses, tokenizer, None)]
    write_rollouts(Path("unmarked.parquet"), made)
    assert main(["align", "--model", str(folder), "--rollouts", "unmarked.parquet"]) == 2
    assert "Rollout 0 has no reward" in capsys.readouterr().err
