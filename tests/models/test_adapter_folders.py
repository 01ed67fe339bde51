"""An adapter folder is loaded as its base model with the adapter."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from conftest import moved, saved, tiny_model
from safetensors.torch import load_file, save_file

from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.models import checkpoint, loading, tokenizers
from internal_policy.models.adapters import inside
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.scans import store

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def base(tmp_path, tokenizer) -> Path:
    return saved(tiny_model("qwen3").float(), tokenizer, tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base) -> Path:
    """A LoRA of the tiny model, saved without a tokenizer, as PEFT does."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    model = peft.get_peft_model(_model(base), config)
    moved(model).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def _model(folder: Path):
    return loading.load_model(Checkpoint(str(folder)), device="cpu")


def _identity(folder: Path, **options) -> str:
    return checkpoint.identity(Checkpoint(str(folder), **options))


def _opened(folder: Path):
    return _identity(folder), _model(folder)


def _change(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_adapter_folder_loads_its_base_with_the_adapter(adapter, base, input_ids):
    merged = peft.PeftModel.from_pretrained(_model(base), adapter).merge_and_unload()
    torch.testing.assert_close(_model(adapter)(input_ids).logits, merged(input_ids).logits)


def test_scanning_an_adapter_equals_scanning_the_merged_model(adapter, base, here, tokenizer):
    merged = peft.PeftModel.from_pretrained(_model(base), adapter).merge_and_unload()
    saved(merged, tokenizer, here / "merged")
    scans = {"whole": here / "merged", "apart": adapter}
    for name, folder in scans.items():
        words = ["--model", str(folder), "--limit", "2", "--max-new-tokens", "6", "--temperature", "0"]
        assert main(["scan", *words, "--output", name, "--dtype", "float64"]) == 0
    whole, apart = (store.read(here / name, "layers") for name in scans)
    assert torch.allclose(torch.tensor(whole["entropy"]), torch.tensor(apart["entropy"]), atol=1e-3)


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_responses_can_be_sampled_from_an_adapter(command, adapter, here):
    words = ["--limit", "2", "--max-new-tokens", "4", "--at", "1.attn_out"]
    assert main([command, "--model", str(adapter), *words]) == 0


def test_training_an_adapter_saves_an_adapter(adapter, here):
    words = ["--steps", "1", "--prompts", "2", "--samples", "2", "--micro-batch", "4", "--max-new-tokens", "4"]
    assert main(["train", "--model", str(adapter), *words, "--layer", "1", "--device", "cpu", "--output", "run"]) == 0
    assert inside(_model(here / "run" / "model")).config.model_type == "qwen3"


def test_the_tokenizer_of_an_adapter_wins_over_that_of_its_base(adapter, tokenizer):
    assert tokenizers.load_tokenizer(Checkpoint(str(adapter))).eos_token == tokenizer.eos_token
    other = tokenizers.load_tokenizer(Checkpoint(str(adapter)))
    other.eos_token = "<|bos|>"
    other.save_pretrained(adapter)
    assert tokenizers.load_tokenizer(Checkpoint(str(adapter))).eos_token == "<|bos|>"


def test_changing_an_adapter_changes_its_identity(adapter):
    before = _identity(adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, adapter / "adapter_model.safetensors")
    assert _identity(adapter) != before


def test_changing_the_base_changes_an_adapters_identity(adapter, base):
    before = _identity(adapter)
    tiny_model("qwen3", rms_norm_eps=0.1).float().save_pretrained(base)
    assert _identity(adapter) != before


def test_a_folders_identity_covers_its_trusted_python_code(base):
    plain, trusted = _identity(base), _identity(base, trust_remote_code=True)
    (base / "inner").mkdir()
    (base / "inner" / "modeling_own.py").write_text("x = 1")
    assert _identity(base) == plain
    assert _identity(base, trust_remote_code=True) != trusted


def test_the_identity_covers_the_commit_of_trusted_remote_code(base, monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(name, file, revision):
        asked.append((name, file))
        return str(tmp_path / f"commit{len(asked)}" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    _change(base / "config.json", auto_map={"AutoConfig": "their/code--configuration_own.Config"})
    assert _identity(base, trust_remote_code=True).endswith(" with their/code at commit1")
    assert _identity(base, trust_remote_code=True) != _identity(base, trust_remote_code=True)
    assert asked[0] == ("their/code", "configuration_own.py")


def _pickled(adapter, base):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def _without_weights(adapter, base):
    (adapter / "adapter_model.safetensors").unlink()


def _without_a_weight(adapter, base):
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(min(weights))
    save_file(weights, adapter / "adapter_model.safetensors")


def _of_a_deeper_model(adapter, base):
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    save_file({**weights, name.replace(".0.", ".9."): weights[name].clone()}, adapter / "adapter_model.safetensors")


def _of_a_wider_model(adapter, base):
    tiny_model("qwen3", hidden_size=16).float().save_pretrained(base)


def _without_its_base(adapter, base):
    shutil.rmtree(base)


def _on_an_adapter(adapter, base):
    _change(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))


def _nameless(adapter, base):
    _change(adapter / "adapter_config.json", base_model_name_or_path=None)


def _prompt_tuning(adapter, base):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(_model(base), config).save_pretrained(adapter)


def _nan(adapter, base):
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: weight * torch.nan for name, weight in weights.items()}, adapter / "adapter_model.safetensors")


BAD = {
    "pickled": (_pickled, "Convert them to safetensors with `save_pretrained` of peft"),
    "no weights": (_without_weights, "it has no adapter_model.safetensors file. Copy the whole adapter"),
    "a weight missing": (_without_a_weight, "has no weights for base_model.model.model.layers.0.mlp.down_proj.lora_A"),
    "a deeper model's": (_of_a_deeper_model, "which its base model lacks. Use the model it was trained on"),
    "a wider model's": (_of_a_wider_model, "size mismatch"),
    "no base": (_without_its_base, r"adapter_config.json names it as the base model"),
    "on an adapter": (_on_an_adapter, "but that is an adapter too"),
    "nameless": (_nameless, "has base_model_name_or_path None"),
    "prompt tuning": (_prompt_tuning, "PROMPT_TUNING, which can't be read layer by layer"),
    "NaN": (_nan, "has NaN or infinite weights in"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_adapter_gets_a_one_sentence_error(case, adapter, base):
    breaking, said = BAD[case]
    breaking(adapter, base)
    with pytest.raises(InputError, match=said):
        _opened(adapter)


def test_a_configuration_of_an_adapter_without_its_base_names_the_adapter(adapter, base):
    _without_its_base(adapter, base)
    with pytest.raises(InputError, match=r"adapter_config\.json names it as the base model"):
        loading.load_config(Checkpoint(str(adapter)))


def test_an_adapter_without_peft_says_what_to_install(adapter, monkeypatch):
    monkeypatch.setattr(checkpoint, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'internal-policy\[peft\]'"):
        _identity(adapter)


def test_transformer_lens_rejects_adapters(adapter, here, capsys):
    assert main(["scan", "--model", str(adapter), "--reader", "transformer-lens"]) == 2
    assert "TransformerLens can't read adapters" in capsys.readouterr().err


def test_weights_are_hashed_only_once_even_with_a_lens(base, here, monkeypatch):
    fit = ["--limit", "3", "--max-new-tokens", "4", "--steps", "2", "--output", "lens.safetensors"]
    hashed, digest = [], checkpoint.folder.digest
    monkeypatch.setattr(checkpoint.folder, "digest", lambda *given: hashed.append(given) or digest(*given))
    assert main(["fit-lens", "--model", str(base), *fit]) == 0
    words = ["--limit", "1", "--max-new-tokens", "4", "--sites", "resid_post", "--lens", "lens.safetensors"]
    assert main(["scan", "--model", str(base), *words]) == 0
    assert len(hashed) == 2


def test_a_command_reads_the_models_configuration_only_once(base, here, monkeypatch):
    read, load_config = [], loading.load_config
    monkeypatch.setattr(loading, "load_config", lambda given: read.append(given) or load_config(given))
    short = ["--model", str(base), "--limit", "3", "--max-new-tokens", "4"]
    assert main(["fit-lens", *short, "--steps", "2", "--output", "lens.safetensors"]) == 0
    internal = ["--at", "0.resid_post", "--lens", "lens.safetensors"]
    for words in (
        ["scan", "--sites", "resid_post", "--lens", "lens.safetensors"],
        ["generate", *internal],
        ["evaluate", *internal, "--samples", "1"],
        ["scan", "--sites", "resid_post", "--dry-run"],
    ):
        read.clear()
        assert main([*words, *short]) == 0
        assert len(read) == 1, words
