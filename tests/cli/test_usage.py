"""The help: one screen of commands, a page for each command, and what is said of mistyped words."""

import dataclasses

import pytest

from internal_policy.__main__ import main
from internal_policy.cli.commands import COMMANDS, reference
from internal_policy.cli.usage import Page

PAGES = reference()


def printed(capsys, *words: str) -> list[str]:
    """The lines that a command prints on a terminal of 80 columns."""
    assert main(words) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A terminal of 80 columns and 24 lines."""
    monkeypatch.setattr("internal_policy.cli.console.out._width", 80)


# the first screen


def test_help_fits_one_screen(capsys):
    lines = printed(capsys, "--help")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_help_is_printed_without_arguments_too(capsys):
    assert printed(capsys) == printed(capsys, "-h")


def test_help_has_a_line_for_every_command(capsys):
    lines = [line[9:].split()[:1] for line in printed(capsys, "--help")]
    assert [name for name in COMMANDS if [name] not in lines] == []


def test_the_commands_of_a_group_are_side_by_side():
    groups = [command.group for command in COMMANDS.values()]
    assert list(dict.fromkeys(groups)) == ["Measure", "Look", "Train", "Manage"]
    assert groups == sorted(groups, key=["Measure", "Look", "Train", "Manage"].index)


def test_the_version_is_printed(capsys):
    assert printed(capsys, "--version")[0].startswith("internal-policy ")


# the help of a command


def test_an_argument_that_can_be_left_out_is_in_brackets(capsys):
    assert printed(capsys, "families", "--help")[0] == "Usage: internal-policy families [MODEL] [options]"
    assert (
        printed(capsys, "show", "--help")[0]
        == "Usage: internal-policy show SCAN|ABLATION|ALIGNMENT|RUN|STUDY|LENS [options]"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_in_its_help(name, capsys):
    lines = [line.strip().split("  ")[0] for line in printed(capsys, name, "--help")]
    assert {option.typed for options in PAGES[name].groups.values() for option in options} <= {*lines}
    fields = {field.name for field in dataclasses.fields(COMMANDS[name].options)}
    assert {option.name for options in PAGES[name].groups.values() for option in options} == fields


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_of_a_help_is_wider_than_the_terminal(name, capsys):
    lines = printed(capsys, name, "--help")
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_that_is_a_sentence(name):
    for options in PAGES[name].groups.values():
        for option in options:
            assert option.help.endswith("."), option.typed
            assert option.help[0].isupper(), option.typed


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_states_a_default_twice(name, capsys):
    assert main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: False)" not in text
    assert "(default: None)" not in text
    for options in PAGES[name].groups.values():
        for option in options:
            assert not (option.default and "by default" in option.help.lower()), option.typed


def test_an_option_belongs_to_the_group_of_the_class_that_declares_it_first():
    groups = {option.name: title for title, options in PAGES["scan"].groups.items() for option in options}
    assert groups["dtype"] == "Model"
    assert groups["problems"] == "Data"
    assert groups["seed"] == "Sampling"
    assert groups["layers"] == "What to measure"
    assert groups["output"] == "Output"
    assert {option.name for option in PAGES["plot"].groups["Arguments"]} == {"scan", "figure"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_a_named_group(name):
    assert "Options" not in PAGES[name].groups


def test_what_is_quoted_in_a_help_is_on_one_line(capsys):
    assert any('" Paris"' in line for line in printed(capsys, "lens", "--help"))
    assert any("`internal-policy families`" in line for line in printed(capsys, "scan", "--help"))


def test_a_command_can_change_a_default_and_its_help():
    samples = next(option for option in PAGES["evaluate"].groups["Sampling"] if option.name == "samples")
    assert samples.default == "8"
    assert samples.help == "Responses per problem (K)."


def test_the_help_names_the_choices_of_an_option_that_may_be_left_out():
    engine = next(option for option in PAGES["train"].groups["Sampling"] if option.name == "engine")
    assert engine.metavar == "{torch,vllm,vllm-server}"


def test_the_help_of_train_goes_from_the_model_to_the_output():
    groups = PAGES["train"].groups
    assert [*groups] == ["Model", "Data", "Sampling", "Method", "Optimization", "LoRA", "Exams", "Output"]
    assert groups["Data"][0].name == "problems"


def test_a_default_of_zero_is_in_the_help():
    seed = next(option for option in PAGES["scan"].groups["Sampling"] if option.name == "seed")
    assert seed.default == "0"


@pytest.mark.parametrize("command", ["scan", "fit-lens", "generate", "evaluate", "train"])
def test_limit_names_rollouts_only_where_a_command_reads_them(command, capsys):
    assert main([command, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    what = "problems or rollouts" if command in ("scan", "fit-lens") else "problems"
    assert f"Number of {what} to use, from the first" in printed


@pytest.mark.parametrize("page", [page for page in PAGES.values() if page.examples])
def test_examples_are_commands_on_one_line(page: Page, capsys):
    for example in page.examples:
        assert "internal-policy " in example or "internal_policy " in example
        assert len(example) <= 78


def test_a_script_that_completes_words_in_a_shell_is_printed(capsys):
    assert main(["--tyro-print-completion", "bash"]) == 0
    assert "fit-lens" in capsys.readouterr().out


# mistyped words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["scna"], "There is no command 'scna'. Did you mean scan?"),
        (["--model", "x"], "The first word must be a command, not --model."),
        (["scan", "--sampels", "3"], "scan has no option --sampels. Did you mean --samples?"),
        (["scan", "--sampels=3"], "scan has no option --sampels. Did you mean --samples?"),
        (["plot", "demo-qwen3", "flow", "--outptu", "x.png"], "plot has no option --outptu. Did you mean --output?"),
        (["--tyro-foo"], "The first word must be a command, not --tyro-foo."),
        (["scan", "--zzz"], "scan has no option --zzz. See internal-policy scan --help."),
        (["scan", "word"], "scan can't use 'word'. See internal-policy scan --help."),
        (["scan", "--top-k", "few"], "--top-k is 'few'. Use a whole number."),
        (["scan", "--limit=few"], "--limit is 'few'. Use a whole number."),
        (["train", "--temperature", "hot"], "--temperature is 'hot'. Use a number."),
        (["scan", "--top-k"], "--top-k needs a value. See internal-policy scan --help."),
        (["scan", "--readout", "rwa"], "--readout is 'rwa'. Did you mean raw? Choose one of raw, norm, both."),
        (
            ["train", "--method", "rlo"],
            "--method is 'rlo'. Did you mean rloo? Choose one of bupo, grpo, dr-grpo, rloo, reinforce++.\n",
        ),
        (["scan", "--device-map", "foo"], "--device-map is 'foo'. Choose one of auto, balanced, balanced_low_0, seq"),
        (["plot", "demo-qwen3", "flwo", "-o", "x.png"], "FIGURE is 'flwo'. Did you mean flow? Choose one of flow, "),
        (["plot", "demo-qwen3", "flow"], "plot needs -o FILE. See internal-policy plot --help."),
        (["plot"], "plot needs SCAN, FIGURE and -o FILE. See internal-policy plot --help."),
    ],
)
def test_wrong_words_end_in_a_sentence_that_names_the_nearest_right_one(words, sentence, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert len(said.splitlines()) == 1
