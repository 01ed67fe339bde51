"""Comparing two evaluations, and planning one."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from internal_policy import files
from internal_policy.__main__ import main
from internal_policy.scans import store
from internal_policy.tasks import paired, pass_at_k
from internal_policy.tasks.power import estimated, smallest

pytestmark = pytest.mark.usefixtures("here")

MARKED = "So \\boxed{7}."


def evaluation(name: str, right: dict[str, list[int]], samples: int = 4, **changes) -> str:
    """Write an evaluation with this many correct responses to each problem of each set."""
    tables = []
    for problems, counts in right.items():
        rows = {
            "problem": [f"{problems} {n}" for n in range(len(counts)) for _ in range(samples)],
            "answer": "7",
            "sample": [*range(samples)] * len(counts),
            "response": changes.get("response", MARKED),
            "reward": [float(sample < c) for c in counts for sample in range(samples)],
            "finished": True,
        }
        tables.append(pd.DataFrame({"problems": problems, **rows}))
    rows = pd.concat(tables, ignore_index=True)
    rows["reward"] = changes.get("reward", rows["reward"])
    folder = Path(name)
    folder.mkdir()
    asked = {"model": name, "samples": samples, "temperature": changes.get("temperature", 1.0)}
    files.write_json(folder / "evaluation.json", {"digest": "0" * 64, "asked": asked})
    store.write_table(folder / "rollouts.parquet", pa.Table.from_pandas(rows, preserve_index=False))
    label = name if len(right) == 1 else f"{name}, {next(iter(right))}"
    curves = pass_at_k.curves([1], samples).assign(label=changes.get("label", label))
    store.write_table(folder / "pass_at_k.parquet", pa.Table.from_pandas(curves, preserve_index=False))
    return name


A, B = [0, 1, 2, 4, 3, 0, 0, 1], [1, 4, 4, 4, 4, 2, 0, 3]


def compared(capsys, *words: str):
    assert main(["evaluate", "a", "b", "--paired", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, words: list[str], sentence: str) -> None:
    assert main(words) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith("error: ")
    assert sentence in printed


def test_two_evaluations_are_compared_problem_by_problem(capsys):
    evaluation("a", {"amc": A})
    evaluation("b", {"amc": B})
    found = compared(capsys)
    (row,) = found["compared"]
    assert (row["problems"], row["number"], found["samples"]) == ("amc", 8, 4)
    assert row["differences"] == paired.differences(A, B, 4).to_dict("records")
    assert row["avg_p"] == paired.p_value(np.subtract(B, A).tolist())
    assert row["solved"] == {"both": 5, "only_a": 0, "only_b": 2, "neither": 1}
    assert row["pass_p"] == 0.5
    assert main(["evaluate", "a", "b", "--paired"]) == 0
    text = capsys.readouterr().out
    assert "b is above a in Avg@4 (+34.4 points, " in text
    assert "Only B solves 2 problems, only A 0, both 5, neither 1." in text
    assert "Pass@2" in text


def test_problems_are_matched_in_whatever_order_and_under_whatever_name(capsys):
    evaluation("a", {"amc": A})
    evaluation("b", {"amc": B})
    first = compared(capsys)["compared"]
    rows = pd.read_parquet("b/rollouts.parquet")
    rows = rows.iloc[np.arange(len(rows)).reshape(-1, 4)[::-1].ravel()].assign(problems="copy")
    store.write_table(Path("b/rollouts.parquet"), pa.Table.from_pandas(rows, preserve_index=False))
    assert compared(capsys)["compared"] == first


def test_a_problem_that_occurs_twice_is_matched_with_its_like(capsys):
    for name, right in (("a", A), ("b", B)):
        evaluation(name, {"amc": right})
        rows = pd.read_parquet(f"{name}/rollouts.parquet").assign(problem="the same")
        store.write_table(Path(f"{name}/rollouts.parquet"), pa.Table.from_pandas(rows, preserve_index=False))
    assert compared(capsys)["compared"][0]["differences"] == paired.differences(A, B, 4).to_dict("records")


def test_sets_of_problems_are_compared_each_and_together(capsys):
    evaluation("a", {"amc": A[:3], "math": A[3:]})
    evaluation("b", {"math": B[3:], "amc": B[:3]})
    rows = {row["problems"]: row for row in compared(capsys)["compared"]}
    assert list(rows) == ["amc", "math", "all"]
    assert rows["all"]["differences"] == paired.differences(A, B, 4).to_dict("records")
    assert main(["evaluate", "a", "b", "--paired"]) == 0
    assert "On math, b is " in capsys.readouterr().out


def test_an_evaluation_compared_with_itself_differs_by_0_within_an_interval(capsys):
    evaluation("a", {"amc": A})
    assert main(["evaluate", "a", "a", "--paired"]) == 0
    text = capsys.readouterr().out
    assert "a is not shown to differ from a in Avg@4 (+0.0 points, -16.0 to +16.0)" in text
    assert text.count("1.000") == 2


def test_one_problem_has_no_interval(capsys):
    evaluation("a", {"amc": [1]})
    evaluation("b", {"amc": [3]})
    assert compared(capsys)["compared"][0]["differences"][0]["low"] is None
    assert main(["evaluate", "a", "b", "--paired"]) == 0
    assert "b differs from a by +50.0 points of Avg@4 on a single problem." in capsys.readouterr().out


def test_unmarked_responses_and_other_settings_are_noted(capsys):
    evaluation("a", {"amc": [1, 2]}, samples=2, reward=[1.0, None, 1.0, 1.0], temperature=0.6)
    evaluation("b", {"amc": [1, 2]}, samples=2)
    found = compared(capsys)
    assert found["caveats"] == [
        "The evaluations differ in --temperature: 0.6 and 1.0.",
        "1 response of a wasn't marked and counts as incorrect.",
    ]
    assert found["compared"][0]["differences"][0]["difference"] == 0


@pytest.mark.parametrize(
    ("of_b", "sentence"),
    [
        (
            {"right": {"amc": B[:5]}},
            "a and b have different problems: 8 and 5, with 5 in common. Evaluate both with the same --problems",
        ),
        ({"right": {"math": B}}, "a and b have different problems: 8 and 8, with 0 in common."),
        ({"right": {"amc": B, "math": B}}, "a and b have different problems: 8 and 16, with 8 in common."),
        ({"samples": 5}, "a has 4 responses per problem and b has 5. Evaluate both with the same --samples."),
        (
            {"right": {"amc": [0] * 8}, "response": "7"},
            r"No response has an answer in \boxed{}, so none was marked in b. Compare evaluations with",
        ),
        ({"reward": None}, "No response in b was marked. Compare evaluations with marked responses."),
    ],
)
def test_evaluations_that_do_not_match_are_refused(of_b, sentence, capsys):
    evaluation("a", {"amc": A})
    evaluation("b", **{"right": {"amc": B}, **of_b})
    refused(capsys, ["evaluate", "a", "b", "--paired"], sentence)


def cut_short(folder: Path) -> None:
    (folder / "rollouts.parquet").write_bytes(b"PAR1")


def without_labels(folder: Path) -> None:
    pd.read_parquet(folder / "pass_at_k.parquet").drop(columns="label").to_parquet(folder / "pass_at_k.parquet")


def without_curves(folder: Path) -> None:
    pd.read_parquet(folder / "pass_at_k.parquet").head(0).to_parquet(folder / "pass_at_k.parquet")


@pytest.mark.parametrize("harm", [cut_short, without_labels, without_curves])
def test_a_damaged_evaluation_is_refused(harm, capsys):
    evaluation("a", {"amc": A})
    harm(Path("a"))
    refused(
        capsys,
        ["evaluate", "a", "a", "--paired"],
        "The evaluation in a is damaged. Remove the folder and evaluate again.",
    )


BAD = {
    "one": (["a", "--paired"], "--paired compares two evaluations, but 1 are named. Name two."),
    "three": (["a", "a", "a", "--plan"], "--plan takes at most two evaluations, but 3 are named."),
    "both": (["a", "a", "--paired", "--plan"], "--paired and --plan can't be used together. Choose one of them."),
    "neither": (["a"], "a is only used with --paired or --plan. Add one of them, or leave it out."),
    "samples": (["a", "a", "--paired", "--samples", "4"], "--samples has no effect with --paired. Leave it out."),
    "unknown": (["a", "z", "--paired"], "There is no evaluation 'z'"),
    "detect": (["--detect", "5"], "--detect has no effect without --plan. Add --plan."),
    "nothing": (["--plan", "--detect", "0"], "--detect is 0. Give a difference in percentage points, such as 5."),
    "none": (["--plan", "--samples", "0"], "samples is 0; it must be 1 or more."),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_do_not_belong_together_are_refused(case, capsys):
    evaluation("a", {"amc": A})
    words, sentence = BAD[case]
    refused(capsys, ["evaluate", *words], sentence)


def test_a_plan_counts_the_problems_and_states_its_assumption(capsys):
    assert main(["evaluate", "--plan", "--samples", "4", "--limit", "40", "--model", "not/loaded"]) == 0
    text = capsys.readouterr().out
    assert "Smallest difference of Avg@K that 40 problems can detect" in text
    assert "Assumed: 50% of the responses are correct, 50% of their variance lies between problems" in text
    assert main(["evaluate", "--plan", "--detect", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["problems"], [row["samples"] for row in found["smallest"]]) == (64, [1, 2, 4, 8])
    assert [row["points"] for row in found["needed"]] == [5]


def test_a_plan_goes_by_the_variance_of_evaluations(capsys):
    evaluation("a", {"amc": A})
    evaluation("b", {"amc": B})
    for names, right in ((["a"], [A]), (["a", "b"], [A, B])):
        assert main(["evaluate", *names, "--plan", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["problems"] == 8
        assert found["smallest"][-1]["paired"] == smallest(estimated(right, 4), 8, 8, paired=True)
    assert main(["evaluate", "a", "b", "--plan", "--limit", "20"]) == 0
    text = capsys.readouterr().out
    assert "that 20 problems can detect" in text
    assert "are those of a and b." in text
