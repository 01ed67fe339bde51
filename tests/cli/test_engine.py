"""Choosing what samples responses or runs the model."""

import pytest
from conftest import one_sentence

from internal_policy.__main__ import main

pytestmark = pytest.mark.usefixtures("here")
REFUSED = {
    "generate --engine server": "needs the server's address. Add --url, such as http://localhost:8000.",
    "generate --url http://localhost:8000": "--url has no effect with --engine local. Leave it out.",
    "scan --engine vllm --served-model mine": "--served-model has no effect with --engine vllm. Leave it out.",
    "scan --engine vllm --tensor-parallel 0": "--tensor-parallel is 0; it must be 1 or more.",
    "scan --engine vllm --shard 0/2": "--engine vllm samples in a single process. First sample with `internal-policy",
    "scan --engine vllm --quantize nf4": "--quantize doesn't apply to vLLM. Leave it out, or --engine.",
    "scan --engine vllm --text Hello": "--engine vllm samples responses, but --text gives what to read. Leave one out.",
    "generate --engine vllm --at 1.resid_post": "samples from the model itself, so --at can't be used.",
    "evaluate --engine vllm --lens l.safetensors": "samples from the model itself, so --lens can't be used.",
    "generate --engine vllm --device cpu": "--device has no effect with --engine vllm. Leave it out.",
    "evaluate --engine server --url http://localhost --dtype float32": "--dtype has no effect with --engine server.",
}


@pytest.mark.parametrize(("words", "said"), REFUSED.items(), ids=REFUSED)
def test_engine_options_that_cannot_be_used_are_refused(words, said, here, capsys):
    assert main(words.split()) == 2
    one_sentence(capsys, said, here)


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_ray_only_runs_scans(command, here, capsys):
    assert main([command, "--engine", "ray"]) == 2
    one_sentence(capsys, "--engine is 'ray'. Choose one of local, vllm, server.", here)


@pytest.mark.parametrize("command", ["generate", "evaluate", "scan"])
def test_vllm_has_to_be_installed(command, problems, capsys):
    assert main([command, "--engine", "vllm", "--problems", str(problems)]) == 2
    assert "This needs vllm, which isn't installed. Run: pip install 'internal-policy[vllm]'" in capsys.readouterr().err
