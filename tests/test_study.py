"""The study of a real model: its commands are the tool's, and its word problems have the right answers."""

from pathlib import Path

import make_study as study  # pyright: ignore[reportMissingImports]
from word_problems import word_problems  # pyright: ignore[reportMissingImports]

from internal_policy.cli import parsing
from internal_policy.cli.commands import COMMANDS


def test_every_step_of_the_study_is_a_command_of_the_tool():
    steps = study.steps(study.Study(Path("model")))
    for step in steps:
        parsing.parse(COMMANDS, step.words)
    assert len({step.name for step in steps}) == len({step.writes for step in steps}) == len(steps)


def test_a_step_reads_only_what_earlier_steps_wrote(tmp_path):
    study.problems(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    for step in study.steps(study.Study(Path("model"))):
        files = {word for word in step.words if word.endswith((".jsonl", ".parquet", ".safetensors"))}
        assert files - {step.writes} <= written
        written.add(step.writes)


def test_no_problem_is_both_fitted_on_and_scanned(tmp_path):
    study.problems(tmp_path)
    texts = {path.stem: path.read_text().splitlines() for path in tmp_path.glob("*.jsonl")}
    assert {name: len(set(lines)) for name, lines in texts.items()} == {"fit": 144, "everyday": 24, "words": 24}
    scanned = [line.partition('", "answer"')[0].removesuffix('"}') for name in study.KINDS for line in texts[name]]
    assert not [problem for problem in scanned if any(line.startswith(problem) for line in texts["fit"])]


def test_the_word_problems_have_the_right_answers():
    problems = word_problems(96)
    assert problems == word_problems(96)
    assert len({row["problem"] for row in problems}) == 96
    change, rolls, sweets = (problems[number] for number in (0, 1, 5))
    assert change["problem"].startswith("A notebook costs 8 dollars. Lena buys 9 of them and pays with a 100 dollar")
    assert change["answer"] == str(100 - 9 * 8)
    assert rolls["problem"].startswith("A baker fills 6 trays with 6 rolls each and puts 10 rolls more on a plate.")
    assert rolls["answer"] == str(6 * 6 + 10)
    assert sweets["problem"].startswith("4 children share 32 sweets equally.")
    assert sweets["answer"] == str(32 // 4)
    assert all(int(row["answer"]) > 0 for row in problems)
