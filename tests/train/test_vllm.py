"""Training samples from vLLM, in its own process or on a server: a stand-in that samples with the weights it gets."""

from contextlib import contextmanager

import pandas as pd
import pytest
import torch
import vllm_training
from conftest import tiny_model
from peft import LoraConfig
from trainer import trainer

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli import train_engine

ONE = "1.resid_post"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@contextmanager
def standin():
    """The stand-in in place of vLLM. TRL sets variables for vLLM, which are unset again."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"):
            patch.setenv(name, "0")
            patch.delenv(name)
        vllm_training.install(patch)
        yield patch


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model("qwen3").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def trained_with(mode, folder, output, tokenizer, **options):
    """Train 2 steps, the first on an internal policy; the trainer, the stand-in, and both generation batches.

    `kept` of the trainer has the passes of both.
    """
    with standin(), vllm_training.serving(folder) as (port, served):
        run = trainer(
            output, tokenizer, folder, use_vllm=True, vllm_mode=mode, vllm_server_host="127.0.0.1", max_steps=4,
            vllm_server_port=port, schedule=[f"{ONE}:1"], model_init_kwargs={"dtype": "float32"}, **options,
        )  # fmt: skip
        batches, make, prepare = [], run._generate_and_score_completions, run._prepare_inputs
        run.kept = []

        def keep(inputs):
            batches.append(make(inputs))
            return batches[-1]

        def keep_passes(inputs):
            before = run._buffered_inputs
            found = prepare(inputs)
            run.kept += [run._buffered_inputs] if run._buffered_inputs is not before else []
            return found

        run._generate_and_score_completions, run._prepare_inputs = keep, keep_passes
        run.train()
    return run, served if mode == "server" else vllm_training.STARTED[-1], batches


@pytest.fixture(scope="module", params=["colocate", "server"])
def trained(request, folder, tokenizer, tmp_path_factory):
    return trained_with(request.param, folder, tmp_path_factory.mktemp("run"), tokenizer)


def differences(passes):
    """The trained policy's log-probabilities before the first update less those that vLLM told, in nats."""
    found = [
        (rows["old_per_token_logps"] - rows["sampling_per_token_logps"])[rows["completion_mask"].bool()]
        for rows in passes
    ]
    return torch.cat(found)


def test_every_batch_is_sampled_from_the_weights_of_that_moment(trained):
    run, sampler, batches = trained
    assert len(batches) == 2
    for batch in batches:  # log-probabilities under older weights would differ
        ratio = batch["importance_sampling_ratio"]
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-3, rtol=0)
    updates = [names for names in sampler.taken if names]
    assert updates == [{name for name, _ in run.model.named_parameters()}] * 2


def test_the_ratio_is_of_the_internal_policy_while_it_is_trained(trained):
    internal, whole = trained[0].kept
    assert differences(internal).abs().max() > 0.01  # vLLM samples from the whole policy
    assert differences(whole).abs().max() < 1e-4


def test_responses_end_where_those_of_generate_do(trained):
    run, sampler, _ = trained
    assert sampler.asked
    assert all(asked["stop_token_ids"] == run.eos_token_ids for asked in sampler.asked)


@pytest.mark.parametrize("mode", ["colocate", pytest.param("server", marks=pytest.mark.slow)])
def test_lora_is_merged_into_the_weights_that_vllm_gets(mode, folder, tokenizer, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    _, sampler, batches = trained_with(mode, folder, tmp_path, tokenizer, peft_config=lora)
    assert batches
    assert sampler.taken
    for batch in batches:
        ratio = batch["importance_sampling_ratio"]
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-3, rtol=0)
    assert not [name for names in sampler.taken for name in names if "lora" in name or "base_layer" in name]


# from the command line


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A short training with an engine."""
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train_engine, "has_gpu", lambda: True)
    monkeypatch.setattr(train_engine, "find_spec", lambda _: True)
    few = "--steps 2 --layer 3 --prompts 2 --samples 2 --max-new-tokens 4 --scan-every 0"
    return ["train", *few.split(), "--output", str(tmp_path / "run")]


@pytest.mark.slow
@pytest.mark.parametrize("more", ["--internal-steps 1", "--lora", "--method dr-grpo", "--method reinforce++"])
def test_the_command_trains_with_vllm_in_its_own_process(more, command, tmp_path):
    with standin():
        assert main([*command, "--engine", "vllm", *more.split()]) == 0
    assert len(pd.read_parquet(tmp_path / "run" / "metrics.parquet")) == 2
    assert vllm_training.STARTED[-1].asked
    assert "use_vllm: true" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_the_command_trains_with_a_server_named_in_the_file(command, tmp_path):
    file, model = tmp_path / "server.yaml", str(bundle.DATA / "models" / "demo-qwen3")
    with standin(), vllm_training.serving(model) as (port, served):
        file.write_text(f"vllm_server_host: 127.0.0.1\nvllm_server_port: {port}\n")
        assert main([*command, "--engine", "vllm-server", "--config", str(file)]) == 0
    assert len([names for names in served.taken if names]) == 2


def test_a_server_that_cannot_take_weights_is_refused_in_a_sentence(command, tmp_path, capsys):
    file, model = tmp_path / "server.yaml", str(bundle.DATA / "models" / "demo-qwen3")
    with standin(), vllm_training.serving(model, weight_transfer_config=None) as (port, _):
        file.write_text(f"vllm_server_base_url: http://127.0.0.1:{port}\n")
        assert main([*command, "--engine", "vllm-server", "--config", str(file)]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "has no weight-transfer engine. Restart it with" in said
