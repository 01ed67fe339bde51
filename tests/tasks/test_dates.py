"""The date that a chat template writes is part of the question, and no scan or run mixes two days."""

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from chat_templates import CHATML
from conftest import saved, tiny_model
from huggingface_hub.errors import LocalEntryNotFoundError

from internal_policy.__main__ import main
from internal_policy.cli import question, train, train_configuration
from internal_policy.cli.evaluate import Evaluate
from internal_policy.cli.fit_lens import FitLens
from internal_policy.cli.generate import Generate
from internal_policy.cli.scan import Scan
from internal_policy.cli.train import Train
from internal_policy.errors import InputError
from internal_policy.models import templates, tokenizers
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.scans import store
from internal_policy.tasks.rollouts import read_rollouts
from internal_policy.train.resume import RUN

DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
ASKED = ["--limit", "4", "--max-new-tokens", "4", "--batch-size", "2"]

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A tiny model whose chat template writes the date."""
    path = saved(tiny_model("llama").float(), tokenizer, tmp_path_factory.mktemp("model"))
    (path / "chat_template.jinja").write_text(DATED)
    return path


@pytest.fixture
def on(monkeypatch):
    """Render templates as on another day."""
    return lambda day: monkeypatch.setattr(templates, "today", lambda: day)


@pytest.mark.parametrize("form", ["generate", "scan", "evaluate", "fit-lens"])
def test_the_date_is_in_the_digest(folder, on, form):
    kinds = {
        "generate": Generate,
        "scan": Scan,
        "evaluate": Evaluate,
        "fit-lens": FitLens,
    }
    asked = kinds[form](model=str(folder), **({"output": Path("x")} if form in ("generate", "fit-lens") else {}))
    digests = []
    for day in ("2026-11-24", "2026-11-25"):
        on(day)
        digests += [store.digest(question.of(asked, set(), []))] * 2
    assert len(set(digests)) == 2


def test_templates_without_a_date_give_the_same_question_every_day(folder, on):
    (plain := Path("plain.jinja")).write_text(CHATML)
    for more in ({"chat_template": str(plain)}, {"chat_template": "none"}, {"model": "demo-qwen3"}):
        questions = []
        for day in ("2026-11-24", "2026-11-25"):
            on(day)
            questions.append(question.of(replace(Scan(model=str(folder)), **more), set(), []))
        assert questions[0] == questions[1]


def test_token_id_rollouts_give_the_same_question_every_day(folder, on):
    Path("ids.jsonl").write_text(json.dumps({"prompt_ids": [5, 6], "response_ids": [7]}))
    Path("texts.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}))
    for name, same in (("ids.jsonl", True), ("texts.jsonl", False)):
        questions = []
        for day in ("2026-11-24", "2026-11-25"):
            on(day)
            questions.append(question.of(Scan(model=str(folder), rollouts=(name,)), set(), [], (name,)))
        assert (questions[0] == questions[1]) == same


def test_plain_texts_give_the_same_question_every_day(folder, here, on, capsys):
    Path("text.txt").write_text("The capital of France is Paris")
    for words in (["--rollouts", "text.txt"], ["--text", "The capital of France is Paris"]):
        found = []
        for day in ("2026-11-24", "2026-11-25"):
            on(day)
            assert main(["scan", "--model", str(folder), *words, "--dry-run", "--json"]) == 0
            found.append(json.loads(capsys.readouterr().out)["scan"])
        assert found[0] == found[1]


def test_prompts_contain_the_date_in_the_question(folder, here, on, tokenizer):
    on("2024-07-26")
    assert main(["scan", "--model", str(folder), *ASKED, "--output", "mine"]) == 0
    prompts = store.read(here / "mine", "rollouts", ["prompt_ids"])["prompt_ids"]
    assert {tokenizer.decode(ids).partition("\n")[0] for ids in prompts} == {"26 Jul 2024"}
    assert "2024-07-26" in store.record(here / "mine")["asked"]["chat_template_kwargs"]


def test_a_scan_continues_on_another_day_only_with_its_own_date(folder, here, on, capsys):
    on("2026-11-24")
    assert main(["scan", "--model", str(folder), *ASKED, "--output", "mine"]) == 0
    (here / "mine" / store.RECORD).unlink()
    store.part_path(here / "mine", "layers", 1).unlink()
    store.part_path(here / "mine", "rollouts", 1).unlink()
    on("2026-11-25")
    again = ["scan", "--model", str(folder), *ASKED, "--output", "mine"]
    assert main(again) == 2
    assert main([*again, "--chat-template-kwargs", '{"strftime_now": "2026-11-24"}']) == 0


REMEDY = """--chat-template-kwargs '{"strftime_now": "2026-11-24"}'"""


@pytest.mark.parametrize("command", ["scan", "evaluate"])
def test_an_error_on_another_day_names_the_date_and_the_remedy(folder, on, capsys, command):
    asked = [command, "--model", str(folder), *ASKED, "--output", "mine"]
    on("2026-11-24")
    assert main(asked) == 0
    on("2026-11-25")
    capsys.readouterr()
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert "strftime_now" in said
    assert REMEDY in said


def test_the_remedy_for_the_date_keeps_other_template_arguments(folder, on, capsys):
    asked = ["scan", "--model", str(folder), *ASKED, "--output", "mine", "--chat-template-kwargs", '{"a": 1}']
    on("2026-11-24")
    assert main(asked) == 0
    on("2026-11-25")
    capsys.readouterr()
    assert main(asked) == 2
    assert REMEDY in capsys.readouterr().err


def test_a_different_question_on_another_day_is_not_blamed_on_the_date(folder, on, capsys):
    asked = ["scan", "--model", str(folder), *ASKED, "--output", "mine"]
    on("2026-11-24")
    assert main(asked) == 0
    on("2026-11-25")
    capsys.readouterr()
    assert main([*asked, "--seed", "1"]) == 2
    assert "strftime_now" not in capsys.readouterr().err


def test_a_date_in_the_template_arguments_is_used(folder, tokenizer):
    Path("r.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}))
    dated = tokenizers.load_tokenizer(Checkpoint(str(folder)))
    (rollout,) = read_rollouts("r.jsonl", dated, {"strftime_now": "2024-07-26"})
    assert tokenizer.decode(rollout.prompt_ids).startswith("26 Jul 2024\n")


def test_a_training_run_keeps_its_starting_date(folder, here, on):
    asked = Train(model=str(folder))
    on("2026-11-25")
    assert train._day(asked, here / "run" / RUN) == "2026-11-25"
    (here / "run").mkdir()
    (here / "run" / RUN).write_text('{"date": "2026-11-20"}')
    assert train._day(asked, here / "run" / RUN) == "2026-11-20"
    assert train._day(Train(), here / "run" / RUN) is None


def test_a_training_configuration_has_the_date_for_its_template(tmp_path):
    config = train_configuration.configured(
        Train(method="bupo"), {"chat_template_kwargs": {"a": 1}}, tmp_path, 1, "2026-11-20"
    )
    assert config.chat_template_kwargs == {"strftime_now": "2026-11-20", "a": 1}


@pytest.mark.parametrize(("template", "why"), [("{{ 1/0 }}", "division by zero"), ("{% if %}", "line 1: Expected")])
def test_a_template_error_names_its_file(folder, template, why, capsys):
    Path("wrong.jinja").write_text(template)
    assert main(["scan", "--model", str(folder), *ASKED, "--chat-template", "wrong.jinja"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "The chat template wrong.jinja rejected the messages" in said
    assert why in said


def test_an_error_in_a_models_own_template_names_its_folder(folder, tokenizer):
    own = tokenizers.load_tokenizer(Checkpoint(str(folder)))
    own.chat_template = "{{ 1/0 }}"
    Path("r.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}))
    with pytest.raises(InputError, match=rf"The chat template of {folder} rejected the messages \(division by zero"):
        read_rollouts("r.jsonl", own, {})


@pytest.mark.parametrize(
    ("name", "text"), [("chat_template.jinja", DATED), ("tokenizer_config.json", DATED), (None, "")]
)
def test_the_template_of_a_hub_model_is_checked_for_a_date(tmp_path, monkeypatch, name, text):
    def download(model, file, revision):
        if file != name:
            raise LocalEntryNotFoundError("not there")
        (tmp_path / file).write_text(text)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert tokenizers.inserts_date(Checkpoint("meta/dated"), None) == (name is not None)
