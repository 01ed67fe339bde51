"""Names, problems, options and files full of terminal escapes: no command prints one of them."""

import json
import re
import shutil

import pytest

from internal_policy import bundle
from internal_policy.__main__ import main

ESCAPES = "\x1b]0;owned\x07\x1b[31m\u202e\x9b2J"
"""Sets the title, the colour, the direction of writing, and clears the screen with an 8-bit code."""
OBEYED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys. Progress bars need carriage returns, which only occur on a terminal otherwise."""
MODEL, PROBLEMS, EMPTY, CUT, YAML, CONFIG, SCAN, LENS, RUN, EVALUATION, ALIGNMENT = (
    f"{name}{ESCAPES}{ending}"
    for name, ending in (
        *(
            ("model", ""),
            ("problems", ".jsonl"),
            ("empty", ".jsonl"),
            ("cut", ".jsonl"),
            ("a", ".yaml"),
            ("b", ".yaml"),
        ),
        *(("scan", ""), ("lens", ".safetensors"), ("run", ""), ("evaluation", ""), ("alignment", "")),
    )
)
OF = ("--model", MODEL, "--problems", PROBLEMS)
FEW = (*OF, "--limit", "2", "--batch-size", "2", "--max-new-tokens", "4")
MORE = ("--model", MODEL, "--limit", "16", "--samples", "4", "--max-new-tokens", "40")
WRONG = [
    ("generate", *FEW, "-o", f"nowhere{ESCAPES}/x.jsonl"),
    ("generate", *FEW, "-o", f"x.{ESCAPES}"),
    ("scan", *OF[:2], "--problems", EMPTY),
    ("scan", *OF[:2], "--problems", CUT),
    ("scan", *OF[:2], "--rollouts", EMPTY),
    ("scan", *OF[:2], "--lens", f"{ESCAPES}={ESCAPES}"),
    ("scan", *OF[:2], "--chat-template", ESCAPES),
    ("scan", *OF[:2], "--chat-template-kwargs", f'{{"{ESCAPES}": '),
    ("scan", f"--{ESCAPES}"),
    ("scan", "--dtype", ESCAPES),
    ("scan", "--limit", ESCAPES),
    (ESCAPES,),
    ("show", ESCAPES),
    ("compare", "demo-qwen3", ESCAPES),
    ("verify", ESCAPES),
    ("plot", "demo-qwen3", ESCAPES, "-o", "x.html"),
    ("plot", "demo-qwen3", "flow", "-o", f"x.{ESCAPES}"),
    ("evaluate", ESCAPES, ESCAPES, "--paired"),
    ("evaluate", *OF[:2], "--problems", EMPTY),
    ("align", *OF[:2], "--problems", EMPTY),
    ("align", *OF[:2], "--sites", ESCAPES),
    ("train", *OF[:2], "--config", YAML),
    ("train", *OF[:2], "--config", CONFIG),
    ("train", *OF[:2], "--config", ESCAPES),
    ("train", *OF[:2], "--reward", f"{ESCAPES}.py:f"),
    ("rm", ESCAPES),
    ("families", ESCAPES),
]
"""Commands that are refused, with what is wrong in the sentence."""
WORKING = [
    ("generate", *FEW, "-o", f"x{ESCAPES}.jsonl"),
    ("scan", *OF[:2], "--rollouts", f"x{ESCAPES}.jsonl", "-o", SCAN),
    ("scan", *OF[:2], "--rollouts", f"x{ESCAPES}.jsonl", "-o", f"other{ESCAPES}"),
    ("show", SCAN),
    ("show", SCAN, "--json"),
    ("compare", SCAN, f"other{ESCAPES}"),
    ("check", SCAN),
    ("verify", SCAN),
    ("verify", SCAN, "--json"),
    ("plot", SCAN, "flow", "-o", f"x{ESCAPES}.html"),
    ("report", SCAN, "-o", f"report{ESCAPES}.html"),
    ("export", SCAN, "-o", f"x{ESCAPES}.csv"),
    ("evaluate", *MORE, "--label", ESCAPES, "-o", EVALUATION),
    ("evaluate", EVALUATION, EVALUATION, "--paired"),
    ("align", *MORE, "--layers", "0", "--sites", "mlp_out", "--readout", "raw", "--blocks", "4", "-o", ALIGNMENT),
    ("show", ALIGNMENT),
    ("fit-lens", *FEW, "--steps", "2", "--skip-halves", "-o", LENS),
    ("show", LENS),
    ("lens", ESCAPES, "--model", MODEL),
    ("ablate", SCAN, "-o", f"ablation{ESCAPES}"),
    (
        *("train", *OF, "--layer", "3", "--internal-steps", "1", "--steps", "2", "--prompts", "2", "--samples", "4"),
        *("--micro-batch", "8", "--max-new-tokens", "4", "--limit", "4", "--reward", "format", "-o", RUN),
    ),
    ("show", RUN),
    ("ls",),
    ("ls", "--json"),
    ("rm", SCAN, "--yes"),
]
"""Commands that work, in order."""


@pytest.fixture
def hostile(here):
    """A working folder with the files that the commands name."""
    shutil.copytree(bundle.DATA / "models" / "demo-qwen3", here / MODEL)
    problems = [{"problem": f"{ESCAPES}1+{n}=", "answer": f"{n + 1}{ESCAPES}"} for n in range(4)]
    (here / PROBLEMS).write_text("".join(f"{json.dumps(problem)}\n" for problem in problems))
    (here / EMPTY).write_text(json.dumps({ESCAPES: ESCAPES}))
    (here / CUT).write_text(f'{{"problem": "{ESCAPES}')
    (here / YAML).write_text(json.dumps({ESCAPES: 3}))
    (here / CONFIG).write_text(f"loss_type: {json.dumps(ESCAPES)}")
    return here


def obeyed(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines with characters that a terminal would obey which a command prints."""
    main(words)
    printed = capfd.readouterr()
    return [ascii(line) for line in f"{printed.out}{printed.err}".split("\n") if OBEYED.search(line)]


@pytest.mark.slow
def test_a_sentence_about_a_hostile_name_shows_it_as_text(hostile, capfd):
    assert [(words, found) for words in WRONG if (found := obeyed(words, capfd))] == []


@pytest.mark.slow
def test_commands_show_hostile_names_and_problems_as_text(hostile, capfd):
    codes = {words: main(words) for words in WORKING}
    printed = capfd.readouterr()
    assert [words for words, code in codes.items() if code] == []
    assert r"model\x1b]0;owned\x07\x1b[31m\u202e\x9b2J" in printed.out
    assert [ascii(line) for line in f"{printed.out}{printed.err}".split("\n") if OBEYED.search(line)] == []
