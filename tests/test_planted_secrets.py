"""A secret that a command is given reaches no file that it writes, nothing that it prints, and no other process."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import slow

from internal_policy.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

PLAIN = "canary0plain"
"""A secret that only its name or place gives away."""
SHAPED = "hf_Canary0Shaped1"
"""A secret that looks like one."""
URL = f"http://me:{PLAIN}@127.0.0.1:9"
KEYS = json.dumps({"api_key": PLAIN, "note": SHAPED, "deep": [{"password": PLAIN}]})
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "INTERNAL_POLICY_API_KEY")
FILE = {
    "hub_token": PLAIN,
    "run_name": SHAPED,
    "hub_model_id": f"https://me:{PLAIN}@host.org/a",
    "chat_template_kwargs": {"api_key": PLAIN, "note": SHAPED},
    "model_init_kwargs": {"token": PLAIN},
    "vllm_server_base_url": URL,
    "save_steps": 1,
}
"""A configuration file for training that has secrets wherever one fits."""
GIVEN = {
    "scan": [["scan", "--chat-template-kwargs", KEYS, "--json"], ["show", "new"], ["report", "new", "-o", "new.html"]],
    "generate": [["generate", "--chat-template-kwargs", KEYS, "--json"]],
    "evaluate": [["evaluate", "--samples", "2", "--chat-template-kwargs", KEYS, "--json"]],
    "fit-lens": [["fit-lens", "--chat-template-kwargs", KEYS]],
}
"""Commands that work, and those that print and draw what they wrote."""
REFUSED = {
    "kwargs that aren't JSON": ["scan", "--chat-template-kwargs", KEYS[:-1]],
    "kwargs that aren't an object": ["scan", "--chat-template-kwargs", json.dumps([SHAPED])],
    "a server that isn't there": ["scan", "--engine", "server", "--url", f"{URL}/v1"],
    "a URL that can't be read": ["scan", "--engine", "server", "--url", f"me:{PLAIN}@host"],
    "problems behind a password": ["scan", "--problems", f"https://me:{PLAIN}@host.org/a.jsonl"],
    "problems with a token": ["scan", "--problems", f"https://host.org/a.jsonl?token={PLAIN}"],
    "a model with a token": ["scan", "--model", f"https://host.org/a?api_key={PLAIN}"],
    "a model called like a token": ["scan", "--model", SHAPED],
    "an output that is an address": ["scan", "--output", f"s3://me:{PLAIN}@bucket/a"],
    "an unknown option": ["scan", f"--api-key={PLAIN}"],
    "an unknown option with a value": ["scan", "--hf-token", PLAIN],
    "an unknown command": [SHAPED],
    "a scan that isn't there": ["show", f"https://me:{PLAIN}@host.org/scan"],
}
"""What is wrong -> a command that prints an error."""
WRONG_FILES = {
    "an unknown field": {"api_key": PLAIN},
    "a token of the wrong type": {"hub_token": {"value": PLAIN}},
    "a list of tokens": {"hub_token": [PLAIN]},
    "kwargs of the wrong type": {"chat_template_kwargs": f'{{"api_key": "{PLAIN}"}}x'},
    "a token as a number of steps": {"save_steps": SHAPED},
    "a password as a method": {"method": SHAPED},
}


@pytest.fixture
def secrets(monkeypatch) -> None:
    """An environment with a secret in every variable that a library reads one from."""
    for name in VARIABLES:
        monkeypatch.setenv(name, SHAPED)


def leaks(folder: Path, printed: str, *but: str) -> list[str]:
    """Where a secret is: files below a folder except those named, "a name" of such a file, or "the output"."""
    found = []
    for path in folder.rglob("*"):
        if any(secret in path.name for secret in (PLAIN, SHAPED)):
            found.append(f"a name: {path}")
        if path.is_file() and path.name not in but:
            content = path.read_bytes()
            found += [str(path) for secret in (PLAIN, SHAPED) if secret.encode() in content]
    return found + [f"the output: {line}" for line in printed.splitlines() if PLAIN in line or SHAPED in line]


def called(words: list[str], monkeypatch, capfd) -> tuple[int, str]:
    """The exit code and the output of a command."""
    monkeypatch.setattr("sys.argv", ["internal-policy", *words])
    code = main(words)
    return code, "".join(capfd.readouterr())


@pytest.mark.parametrize("command", ["scan", *slow("generate", "evaluate", "fit-lens")])
def test_a_command_keeps_no_secret(command, here, folder, problems, secrets, monkeypatch, capfd):
    first, *others = GIVEN[command]
    ending = {"generate": ".parquet", "fit-lens": ".safetensors"}.get(command, "")
    model = ["--model", str(folder), "--problems", str(problems), "--limit", "2", "--max-new-tokens", "2"]
    for words in ([*first, *model, "--output", f"new{ending}"], *others):
        code, printed = called(words, monkeypatch, capfd)
        assert code == 0, printed
        assert leaks(here.parent, printed) == []


@pytest.mark.parametrize("wrong", REFUSED)
def test_an_error_shows_no_secret(wrong, here, folder, secrets, monkeypatch, capfd):
    words = REFUSED[wrong]
    if words[0] == "scan" and "--model" not in words:
        words = [*words, "--model", str(folder)]
    code, printed = called(words, monkeypatch, capfd)
    assert code == 2, printed
    assert leaks(here.parent, printed) == []


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_an_error_in_a_configuration_file_shows_no_secret(wrong, here, folder, monkeypatch, capfd):
    (here / "given.yaml").write_text(yaml.safe_dump(WRONG_FILES[wrong]))
    words = ["train", "--model", str(folder), "--steps", "1", "--layer", "1", "--config", "given.yaml"]
    code, printed = called(words, monkeypatch, capfd)
    assert code == 2, printed
    assert leaks(here.parent, printed, "given.yaml") == []


@pytest.mark.slow  # a whole training
def test_a_training_run_keeps_no_secret(here, folder, problems, secrets, monkeypatch, capfd):
    (here / "given.yaml").write_text(yaml.safe_dump({k: v for k, v in FILE.items() if k != "model_init_kwargs"}))
    few = ["--steps", "1", "--internal-steps", "1", "--prompts", "2", "--samples", "2", "--max-new-tokens", "2"]
    given = ["--model", str(folder), "--problems", str(problems), "--layer", "1", *few, "--config", "given.yaml"]
    train = ["train", *given, "--save-every", "1", "--output", "run"]
    for words in (train, ["show", "run"]):
        code, printed = called(words, monkeypatch, capfd)
        assert code == 0, printed
        assert leaks(here.parent, printed, "given.yaml") == []
    assert list((here / "run").glob("checkpoint-*"))


def test_loggers_get_no_secret(tmp_path):
    from internal_policy.train.configuration import BuPOConfig

    config = BuPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], **{k: FILE[k] for k in FILE})
    told = f"{config.to_dict()}{config.to_sanitized_dict()}{config.to_json_string()}{config}"
    assert PLAIN not in told
    assert SHAPED not in told
    assert config.chat_template_kwargs == FILE["chat_template_kwargs"]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux")
def test_a_worker_process_has_no_secret_on_its_command_line(secrets):
    from internal_policy.models import templates

    templates._worker.start()
    assert templates._worker.process is not None
    assert SHAPED.encode() not in Path(f"/proc/{templates._worker.process.pid}/cmdline").read_bytes()
