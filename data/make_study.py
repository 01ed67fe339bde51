"""Study a real model with four readouts and controls: `python data/make_study.py FOLDER`.

FOLDER holds SmolLM2-135M-Instruct. Every step is one command of internal-policy, whose result is kept in a work folder,
so that an interrupted study continues where it stopped. The numbers that notebook 07 shows go to `studies/smollm2/`.
"""

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import tyro
from word_problems import word_problems

import internal_policy as ip
from internal_policy import files

HERE = Path(__file__).parent.resolve() / "studies" / "smollm2"
KINDS = ("everyday", "words")
"""Everyday questions, which are read from a file, and word problems, which are drawn."""
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model's name in the results: a link in the work folder, which leads to the model's folder."""
HELD = 24
"""How many problems of each kind, the last ones, are scanned; lenses are fitted on the others."""
PROBLEMS = 96
TABLES = ("means", "changes", "verdicts", "results", "effects", "correlations")
"""The tables of a study."""
STREAM = "resid_pre,resid_post"
"""The sites that both lenses are fitted at."""
EVERY = 4
"""Every how many tokens the controls are measured at, because they take several times as long."""
TUNED = ("--steps", "120", "--batch-tokens", "64", "--skip-halves")
"""A short fit of the tuned lens: a fraction of its default of 800 steps with 256 tokens each."""
ABLATED = 8
"""How many responses of each kind are read with each layer, attention block and FFN ablated."""


@dataclass(frozen=True)
class Study:
    """Study SmolLM2-135M-Instruct: fit two lenses, scan with four readouts and controls, check, and ablate."""

    model: tyro.conf.Positional[Path]
    """Folder of the model."""
    work: Path = Path("smollm2-study")
    """Folder for what the steps write; give it again to continue an interrupted study."""
    tokens: int = 96
    """Length limit of a scanned response."""
    probes: int = 32
    """Output dimensions whose derivatives each sequence gives the Jacobian lens."""


@dataclass(frozen=True)
class Step:
    """One command of internal-policy."""

    name: str
    writes: str
    """Path in the work folder that it writes. Once that exists, the step is skipped."""
    words: tuple[str, ...]
    """Its arguments."""


def steps(study: Study) -> list[Step]:
    """The commands of a study, in order, run in the work folder."""
    sampled = ("generate", "--model", MODEL, "--max-new-tokens", str(study.tokens), "--batch-size", str(HELD))
    fit = ("fit-lens", "--model", MODEL, "--rollouts", "fit.parquet")
    probes = ("--kind", "jacobian", "--probes", str(study.probes))
    return [
        Step("sample to fit on", "fit.parquet", (*sampled, "--problems", "fit.jsonl", "-o", "fit.parquet")),
        Step("fit the tuned lens", "tuned.safetensors", (*fit, *TUNED, "-o", "tuned.safetensors")),
        Step("fit the Jacobian lens", "jacobian.safetensors", (*fit, *probes, "-o", "jacobian.safetensors")),
        *(
            Step(f"card of {kind}", f"card-{kind}.json", ("show", f"{kind}.safetensors", "--json"))
            for kind in ("tuned", "jacobian")
        ),
        *(step for kind in KINDS for step in steps_of(kind, sampled)),
    ]


def steps_of(kind: str, sampled: tuple[str, ...]) -> list[Step]:
    """The commands for the problems of one kind; `sampled` are the words that sample responses."""
    rollouts, four, controls = f"{kind}.parquet", f"readouts-{kind}", f"controls-{kind}"
    scan = ("scan", "--model", MODEL, "--rollouts", rollouts, "--batch-size", "4", "--top-k", "0")
    lenses = ("--lens", "tuned.safetensors", "--lens", "jacobian.safetensors")
    ablate = ("ablate", controls, "--limit", str(ABLATED), "--replacement", "zero", "-o", f"ablation-{kind}", "--json")
    return [
        Step(f"sample {kind}", rollouts, (*sampled, "--problems", f"{kind}.jsonl", "-o", rollouts)),
        Step(f"scan {kind} with four readouts", f"{four}/scan.json", (*scan, "--sites", STREAM, *lenses, "-o", four)),
        Step(
            f"scan {kind} with controls",
            f"{controls}/scan.json",
            (*scan, "--controls", "--every", str(EVERY), "-o", controls),
        ),
        *(
            Step(
                f"check {kind}, {readout}",
                f"check-{kind}-{readout}.json",
                ("check", controls, "--readout", readout, "--json"),
            )
            for readout in ("raw", "norm")
        ),
        Step(f"ablate {kind}", f"ablation-{kind}.json", ablate),
    ]


def run(step: Step, work: Path) -> float:
    """Run a step in the work folder, and return its CPU seconds. What it prints as JSON is what it writes."""
    start, printed = spent(), step.writes.endswith(".json") and "--json" in step.words
    command = [sys.executable, "-m", "internal_policy", *step.words]
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE if printed else None, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    if printed:
        with files.replacing(work / step.writes) as temporary:
            temporary.write_bytes(done.stdout)
    return spent() - start


def spent() -> float:
    """CPU seconds of the steps that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def problems(work: Path) -> None:
    """Write the problems to fit on and to scan."""
    everyday = [json.loads(line) for line in (HERE / "everyday.jsonl").read_text().splitlines()]
    drawn = word_problems(PROBLEMS)
    kinds = dict(zip(KINDS, (everyday, drawn), strict=True))
    fitted = [{"problem": row["problem"]} for rows in kinds.values() for row in rows[:-HELD]]
    for name, rows in {"fit": fitted, **{name: rows[-HELD:] for name, rows in kinds.items()}}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with files.replacing(work / f"{name}.jsonl") as temporary:
            temporary.write_text(text)


def collect(work: Path, seconds: dict[str, float]) -> None:
    """Write the numbers of all steps to a few small files."""
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for kind in KINDS:
        four, controls = ip.open_scan(work / f"readouts-{kind}"), ip.open_scan(work / f"controls-{kind}")
        for readout, measure in product(four.record["selection"]["readouts"], ("entropy", "kl")):
            rows = four.view(readout=readout).means(measure)
            frames["means"].append(rows.assign(kind=kind, readout=readout, measure=measure))
        for readout in controls.record["selection"]["readouts"]:
            frames["changes"].append(controls.view(readout=readout).changes().assign(kind=kind, readout=readout))
            found = json.loads((work / f"check-{kind}-{readout}.json").read_text())
            for name in ("verdicts", "results"):
                frames[name].append(pd.DataFrame(found[name]).assign(kind=kind, readout=readout))
        found = json.loads((work / f"ablation-{kind}.json").read_text())
        for name in ("effects", "correlations"):
            frames[name].append(pd.DataFrame(found[name]).assign(kind=kind))
    for name, rows in frames.items():
        with files.replacing(HERE / f"{name}.parquet") as temporary:
            pd.concat(rows, ignore_index=True).to_parquet(temporary, index=False)
    cards = {kind: json.loads((work / f"card-{kind}.json").read_text()) for kind in ("tuned", "jacobian")}
    names = [f"{name}-{kind}" for name in ("readouts", "controls") for kind in KINDS]
    about = {name: asdict(ip.open_scan(work / name).about) for name in names}
    record = {"version": ip.__version__, "cpu_seconds": seconds, "scans": about, "cards": cards}
    with files.replacing(HERE / "study.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def main(study: Study) -> None:
    """Run the steps that aren't done yet, and collect their numbers."""
    work = study.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    problems(work)
    link = work / MODEL
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(study.model.resolve())
    times = work / "seconds.json"
    seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
    for step in steps(study):
        if (work / step.writes).exists():
            continue
        print(f"\n{step.name}: internal-policy {' '.join(step.words)}", flush=True)
        seconds[step.name] = round(seconds.get(step.name, 0) + run(step, work), 1)
        with files.replacing(times) as temporary:
            temporary.write_text(json.dumps(seconds, indent=1))
    collect(work, seconds)


if __name__ == "__main__":
    main(tyro.cli(Study))
