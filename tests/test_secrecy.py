"""Saved files contain no secrets."""

import pickle

import pytest

from internal_policy import files
from internal_policy.__main__ import main
from internal_policy.secrecy import printable, redacted

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize(
    "key",
    ["hub_token", "token", "HF_TOKEN", "api_key", "apiKey", "api-key", "aws_secret_access_key", "db_password", "pw"],
)
def test_values_of_secret_keys_are_hidden(key):
    assert redacted({"file": {key: "s3cret"}}) == {"file": {key: "***"}}


@pytest.mark.parametrize(
    "record",
    [
        {"max_new_tokens": 64, "tokens": 5, "tokenizer": "x", "top_k": 5},
        {"eos_token": "<|im_end|>", "pad_token": "<pad>"},
        {"hub_token": None, "push_token": False, "token": ""},
        {"keys": ["a"], "monkey": "b"},
        {"content": {"my-secret-problems.jsonl": {"bytes": 3, "sha256": "ab"}}, "problems": "my-secret-problems.jsonl"},
        {"content": {"me/api-key@test": {"revision": "ab"}}, "model": "hf_models/Qwen3-4B", "lens": "sk-lens.pt"},
        {"model": "/models/hf_Abc1234567", "problems": "hf_sums2025.jsonl", "said": "The bearer of 2024bonds."},
        {"content": {"https://huggingface.co/a@main": {"bytes": 3}}, "problems": "HuggingFaceH4/MATH-500@test"},
        {"chat_template_kwargs": '{"enable_thinking":false}'},
    ],
)
def test_values_that_are_not_secret_are_kept(record):
    assert redacted(record) == record


@pytest.mark.parametrize(
    "secret",
    [
        "hf_SECRETabc123",
        "sk-proj-Abc_123def",
        "ghp_Abc123def456",
        "github_pat_11ABC_def456",
        "xoxb-123-456-Abc",
        "AKIAIOSFODNN7EXAMPLE",
        "Bearer abc.DEF-123_4567",
        "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM",
    ],
)
def test_values_that_look_secret_are_hidden_under_any_key(secret):
    assert redacted({"x": [secret], "said": f"log in with {secret}."}) == {"x": ["***"], "said": "log in with ***."}
    assert redacted(f'{{"x":"{secret}"}}') == '{"x": "***"}'
    assert redacted(f"--chat-template-kwargs={{x: {secret}}}") == "--chat-template-kwargs={x: ***}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('The file has x: {"api_key": "s3cret"}.', 'The file has x: {"api_key": ***}.'),
        ("The file has hub_token: ['s3cret']; expected str.", "The file has hub_token: ***]; expected str."),
        ("Continue with: scan --hub-token s3cret --seed 3", "Continue with: scan --hub-token *** --seed 3"),
        ("Unknown option --api-key=s3cret.", "Unknown option --api-key=***"),
        ("me:s3cret@host isn't an address", "***@host isn't an address"),
        ("s3:/me:s3cret@bucket is an address", "s3:/***@bucket is an address"),
    ],
)
def test_secrets_in_a_sentence_are_hidden(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Unknown key: 'foo'. Try --schedule 5.resid_post:20,11.mlp_out@norm:10,final.",
        "a.jsonl has max_new_tokens: 5, and eos_token: '<|im_end|>'. Use --top-k 5 or seed=3.",
        "C:/models/a is missing. See https://huggingface.co/a@main, or add --dtype bfloat16.",
        "The tokenizer has no token 'x' at position 3: 12, 13.",
    ],
)
def test_sentences_without_secrets_are_kept(text):
    assert printable(text) == text


def test_secrets_in_a_json_argument_are_hidden():
    option = '{"api_key": "s3cret", "enable_thinking": false}'
    hidden = '{"api_key": "***", "enable_thinking": false}'
    assert redacted(["--chat-template-kwargs", option]) == ["--chat-template-kwargs", hidden]
    assert redacted([f"--chat-template-kwargs={option}"]) == [f"--chat-template-kwargs={hidden}"]


def test_credentials_in_urls_are_hidden():
    assert redacted("https://me:s3cret@host.org/a@b.jsonl") == "https://***@host.org/a@b.jsonl"
    assert redacted("https://host.org/a?page=2&token=s3cret") == "https://host.org/a?page=2&token=***"


def test_a_secret_key_beside_paths_is_hidden():
    record = {"content": {"token.jsonl": {"bytes": 3, "api_key": "s3cret"}, "token": "s3cret"}}
    assert redacted(record) == {"content": {"token.jsonl": {"bytes": 3, "api_key": "***"}, "token": "***"}}


def test_json_files_contain_no_secret(tmp_path):
    files.write_json(tmp_path / "run.json", {"file": {"hub_token": "s3cret"}, "command": ["https://me:s3cret@host"]})
    assert "s3cret" not in (tmp_path / "run.json").read_text()


def test_a_pickled_configuration_has_no_hub_token():
    from internal_policy.train.configuration import BuPOConfig

    config = BuPOConfig(output_dir="unused", use_cpu=True, report_to=[], hub_token="s3cret")
    assert b"s3cret" not in pickle.dumps(config)
    assert config.hub_token == "s3cret"


def test_problems_in_a_file_with_a_secret_looking_name_are_compared(here):
    from internal_policy.look import comparison
    from internal_policy.scans import store

    problems = here / "my-secret-problems.jsonl"
    problems.write_text('{"problem": "1 + 1", "answer": "2"}\n')
    folders = [f"{number}-scan" for number in range(2)]
    for folder in folders:
        few = ["scan", "--problems", problems.name, "--limit", "1", "--max-new-tokens", "2", "--output", folder]
        assert main(few) == 0
    records = [store.record(here / folder) for folder in folders]
    assert comparison.differences(records) == []


def test_a_scan_stores_no_secret_and_is_found_again(here, capsys, monkeypatch):
    command = ["scan", "--limit", "1", "--max-new-tokens", "4", "--chat-template-kwargs", '{"api_key": "s3cret"}']
    monkeypatch.setattr("sys.argv", ["internal-policy", *command])
    assert main([*command, "--output", "kept"]) == 0
    assert main([*command, "--output", "kept"]) == 0
    assert "Read from the cache" in capsys.readouterr().err
    assert main(["report", "kept"]) == 0
    written = [path for path in here.parent.rglob("*") if path.is_file() and path.suffix in (".json", ".html")]
    assert {path.name for path in written} >= {"asked.json", "scan.json", "report.html"}
    assert not any("s3cret" in path.read_text() for path in written)


def test_a_training_run_stores_no_secret_and_continues_with_another(here, capsys):
    few = ["train", "--layer", "3", "--steps", "1", "--internal-steps", "1", "--prompts", "2", "--samples", "2"]
    few += ["--scan-every", "0", "--max-new-tokens", "8", "--config", "given.yaml", "--output", "run"]
    (here / "given.yaml").write_text("hub_token: s3cret\n")
    assert main(few) == 0
    assert not [path for path in (here / "run").rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    (here / "given.yaml").write_text("hub_token: other\n")
    assert main(few) == 2
    assert "finished run" in capsys.readouterr().err
