"""What samples in training, as --engine names it."""

from pathlib import Path

import pytest
import torch
from conftest import saved, tiny_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli import configuration, train_configuration, train_engine
from internal_policy.cli.train import Train
from internal_policy.errors import InputError
from internal_policy.models import loading

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(train_engine, "find_spec", lambda _: True)
    monkeypatch.setattr(train_engine, "has_gpu", lambda: True)


def configured(tmp_path, file=None, **options):
    resolved = train_configuration.resolved(Train(**options), file or {})
    return train_configuration.configured(resolved, file or {}, tmp_path, 3)


@pytest.mark.parametrize(
    ("engine", "used", "mode"),
    [("torch", False, "colocate"), ("vllm", True, "colocate"), ("vllm-server", True, "server")],
)
def test_an_engine_sets_the_fields_of_the_trainer(engine, used, mode, installed, tmp_path):
    config = configured(tmp_path, {"use_vllm": not used}, engine=engine)
    assert (config.use_vllm, config.vllm_mode) == (used, mode)


def test_without_the_option_the_file_decides(tmp_path):
    config = configured(tmp_path, {"use_vllm": True, "vllm_mode": "server", "vllm_server_port": 8001})
    assert (config.use_vllm, config.vllm_mode, config.vllm_server_port) == (True, "server", 8001)
    assert not configured(tmp_path).use_vllm


def test_code_of_the_model_may_run_in_vllm_too(installed, tmp_path):
    assert configured(tmp_path, engine="vllm", trust_remote_code=True).trust_remote_code
    assert not configured(tmp_path, engine="vllm").trust_remote_code


@pytest.mark.parametrize("engine", ["vllm", "vllm-server"])
def test_without_vllm_the_engine_is_refused_before_the_model_loads(engine, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_model", None)
    assert main(["train", "--engine", engine, "--layer", "3", "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --engine {engine} needs vLLM, which isn't installed. Run `pip install 'trl[vllm]'`")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "vllm", "quantize": "nf4"}, "Leave out --quantize"),
        ({"engine": "vllm", "gguf_file": "a.gguf"}, "Leave out --gguf-file"),
        ({"engine": "vllm", "model": "org/a", "revision": "v2"}, "vLLM would load the model's main revision"),
    ],
)
def test_what_vllm_cannot_load_is_refused(options, said, installed, tmp_path):
    config = configured(tmp_path, engine="vllm")
    with pytest.raises(InputError, match=said):
        train_engine.check(Train(**options), config, configuration.load(Train().checkpoint))


@pytest.mark.parametrize(("dtype", "changed"), [(torch.bfloat16, 1e-2), (torch.float32, 1e-6)])
def test_merging_an_adapter_and_taking_it_out_changes_bfloat16_weights_only(dtype, changed):
    model = get_peft_model(tiny_model("qwen3").to(dtype), LoraConfig(r=2, target_modules=["q_proj"]))
    (weight,) = [w for name, w in model.named_parameters() if name.endswith("0.self_attn.q_proj.base_layer.weight")]
    before = weight.detach().clone()
    for name, adapted in model.named_parameters():
        if "lora_" in name:
            adapted.data.normal_(0, 0.1)
    for _ in range(5):
        model.merge_adapter()
        model.unmerge_adapter()
    moved = float((weight - before).abs().max() / before.abs().max())
    assert (moved > 1e-3) == (dtype == torch.bfloat16)
    assert moved < changed


@pytest.fixture
def adapter(tmp_path, tokenizer) -> str:
    """The folder of an adapter, and its base model beside it."""
    base = saved(tiny_model("qwen3"), tokenizer, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def refusal(options: Train, folder: Path) -> str | None:
    """Why vLLM can't sample for a training with these options; None if it can."""
    try:
        train_engine.check(options, configured(folder, engine="vllm"), configuration.load(options.checkpoint))
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_adapter_on_half_precision_weights_is_refused(dtype, adapter, installed, tmp_path):
    said = refusal(Train(model=adapter, engine="vllm", dtype=dtype), tmp_path)
    assert f"changes {dtype} weights a little each time. Use --dtype float32" in str(said)


def test_a_new_adapter_on_half_precision_weights_is_refused_too(installed, tmp_path):
    options = Train(engine="vllm", dtype="bfloat16", lora=True)
    with pytest.raises(InputError, match="changes bfloat16 weights a little each time"):
        train_engine.check(
            options, configured(tmp_path, engine="vllm", lora=True), configuration.load(options.checkpoint)
        )


def test_an_adapter_on_float32_weights_can_be_trained_with_vllm(adapter, installed, tmp_path):
    assert refusal(Train(model=adapter, engine="vllm"), tmp_path) is None


def test_a_server_is_refused_without_a_gpu(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(train_engine, "has_gpu", lambda: False)
    options = Train(engine="vllm-server")
    with pytest.raises(InputError, match="over NCCL, which needs a GPU"):
        train_engine.check(options, configured(tmp_path, engine="vllm-server"), configuration.load(options.checkpoint))


@pytest.mark.parametrize("name", ["demo-qwen3", "demo-llama"])
def test_models_whose_weights_keep_their_names_can_be_sampled_by_vllm(name, installed, tmp_path):
    assert refusal(Train(model=str(bundle.DATA / "models" / name), engine="vllm"), tmp_path) is None


def test_a_family_whose_experts_are_packed_in_memory_is_refused(installed, tmp_path, tokenizer):
    options = Train(model=str(saved(tiny_model("qwen3_moe"), tokenizer, tmp_path / "moe")), engine="vllm")
    with pytest.raises(InputError, match=r"in memory .* has model.layers.0.mlp.experts.gate_up_proj"):
        train_engine.check(options, configured(tmp_path, engine="vllm"), configuration.load(options.checkpoint))
