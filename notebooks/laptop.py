"""Fill docs/laptop.md with the numbers of the bundled experiments: `python notebooks/laptop.py`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import experiments
import pandas as pd

from internal_policy import bundle

PAGE = Path(__file__).parent.parent / "docs" / "laptop.md"
FOLDER = bundle.DATA / "experiments"


def filled(page: str, folder: Path = FOLDER) -> str:
    """The page with each block between `<!-- NAME -->` and `<!-- end -->` computed from the files."""
    blocks = computed(folder)

    def block(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{blocks[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def computed(folder: Path) -> dict[str, str]:
    """The blocks of the page: name -> Markdown."""
    if not (folder / "plan.json").exists():
        return dict.fromkeys(
            ("beforehand", "results", "matched", "delayed", "long", "alignment"), "\nThese runs aren't here yet.\n"
        )
    plans = json.loads((folder / "plan.json").read_text())
    evaluations = pd.read_parquet(folder / "evaluations.parquet")
    groups = experiments.table(evaluations)
    return {
        "beforehand": beforehand(plans, evaluations),
        "results": results(groups),
        "matched": matched(evaluations),
        "delayed": compared(experiments.bupo(groups, long=False), "delayed"),
        "long": compared(experiments.bupo(groups, long=True), "difference"),
        "alignment": alignment(evaluations, folder),
    }


def beforehand(plans: Mapping[str, Any], evaluations: pd.DataFrame) -> str:
    """What was known before the comparison: the untrained models and the smallest detectable differences."""
    before = experiments.untrained(evaluations)
    lines = [
        f"- `{model}`: the untrained model answers {100 * before[model]:.1f}% of the exam. Choosing runs differ by "
        f"{100 * plan['deviation']:.1f} points between seeds, so {plan['seeds']} pairs detect a difference of "
        f"{100 * plan['detectable']:.1f} points, or {100 * plan['detectable_corrected']:.1f} among "
        f"{plan['comparisons']} comparisons, in four of five cases."
        for model, plan in plans.items()
    ]
    return "\n".join(["", *lines, ""])


def results(groups: pd.DataFrame) -> str:
    """The table of all methods."""
    shown = experiments.shown(groups).rename(columns={"learning rate": "rate"})
    return f"\n{markdown(shown)}\n"


def matched(evaluations: pd.DataFrame) -> str:
    """BuPO compared with GRPO at BuPO's rate, on the models that have it."""
    groups = experiments.table(evaluations, experiments.MATCHED)
    groups = groups[(groups["pairs"] > 0) & groups["method"].isin(experiments.INTERNAL)]
    return compared(groups, "difference") + compared(groups, "delayed", "delayed GRPO")


def compared(groups: pd.DataFrame, column: str, baseline: str = "GRPO") -> str:
    """One comparison with GRPO: how many groups show a difference, and each of them."""
    above, below = (int((groups[f"{column}_low"] > 0).sum()), int((groups[f"{column}_high"] < 0).sum()))
    unclear = len(groups) - above - below
    said = (
        f"Of {len(groups)} first phases {above} end above {baseline}, {below} below, and {unclear} show no difference:"
    )
    rows = [{str(name): value for name, value in row.items()} for row in groups.to_dict("records")]
    lines = [
        f"- `{row['model']}`, {experiments.label(row)}: {experiments.points(row, column, baseline)}" for row in rows
    ]
    return "\n".join(["", said, "", *lines, ""])


def alignment(evaluations: pd.DataFrame, folder: Path) -> str:
    """The share of GRPO's gain that each first phase made, beside the one that alignment predicts."""
    path = folder / "alignment.parquet"
    if not path.exists():
        return "\nThe alignment wasn't measured.\n"
    found = experiments.predicted(evaluations, pd.read_parquet(path))
    shares = {name: [_share(row, name) for row in found.to_dict("records")] for name in ("predicted", "gain")}
    shown = pd.DataFrame(
        {
            "model": found["model"],
            "first phase": [experiments.label({str(k): v for k, v in row.items()}) for row in found.to_dict("records")],
            "predicted": shares["predicted"],
            "gained": shares["gain"],
        }
    )
    rank = found["predicted"].corr(found["gain"], method="spearman")
    return f"\n{markdown(shown)}\n\nThe rank correlation of the two columns is {rank:.2f} over {len(found)} phases.\n"


def _share(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a table."""
    rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
