"""Weights are counted as they will be loaded, before they are."""

import json
import shutil

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from internal_policy.errors import InputError
from internal_policy.models import folder, weights
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.loading import read_config
from internal_policy.models.weights import Stored, Weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a llama in bfloat16."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").bfloat16().save_pretrained(folder)
    return folder


def counted(folder, device=CPU) -> Weights:
    """The weights of a folder."""
    checkpoint = Checkpoint(str(folder))
    config = read_config(checkpoint)
    return weights.count(checkpoint, config, weights.empty(checkpoint, config), device)


@pytest.fixture
def packed(saved, tmp_path):
    """The same model with q_proj packed in bytes with a float32 scale, and the method that is passed."""

    def write(method: str):
        tensors = load_file(saved / "model.safetensors")
        for name in [name for name in tensors if "q_proj" in name]:
            tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.int8)
            tensors[f"{name.removesuffix('weight')}weight_scale"] = torch.ones(len(tensors[name]), 1)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        config = json.loads((saved / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method, "bits": 8}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def test_plain_weights_take_their_elements_in_the_chosen_type(saved):
    elements = sum(weight.numel() for weight in tiny_model("llama").parameters())
    found = counted(saved)
    assert [found.bytes(size) for size in (2, 4)] == [2 * elements, 4 * elements]


def test_quantizing_packs_the_linear_modules_but_the_unembedding(saved):
    model = tiny_model("llama")
    modules = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    linear, rows = sum(m.weight.numel() for m in modules), sum(len(m.weight) for m in modules)
    others = sum(weight.numel() for weight in model.parameters()) - linear
    found = counted(saved)
    assert found.bytes(2, "nf4") == 2 * others + linear * 9 // 16  # 4 bits, and 4 bytes for 64 weights
    assert found.bytes(2, "int8") == 2 * others + linear + 4 * rows


def test_a_quantized_checkpoint_counts_as_its_files_do(saved, packed):
    plain, found = counted(saved), counted(packed("gptq"))
    model = tiny_model("llama")
    quantized = sum(layer.self_attn.q_proj.weight.numel() for layer in model.model.layers)
    rows = sum(len(layer.self_attn.q_proj.weight) for layer in model.model.layers)
    assert found.bytes(2) == plain.bytes(2) - 2 * quantized + quantized + 4 * rows


def test_weights_that_a_cpu_dequantizes_count_as_plain_ones(saved, packed):
    folder = packed("mxfp4")
    assert counted(folder).bytes(2) == counted(saved).bytes(2)
    assert counted(folder, CUDA).bytes(2) < counted(saved).bytes(2)


def test_without_the_files_the_bits_of_the_configuration_count(saved, packed, monkeypatch):
    folder = packed("gptq")
    monkeypatch.setattr(weights, "headers", lambda _: {})
    plain, found = counted(saved), counted(folder)
    assert found.bytes(2) == 2 * (plain.plain - plain.linear) + round(plain.linear * weights.SCALED)


def test_a_packed_unembedding_counts_as_a_plain_one():
    stored = {
        "lm_head.weight": Stored("I8", 100, 100),
        "lm_head.weight_scale": Stored("F32", 10, 40),
        "model.norm.weight": Stored("BF16", 8, 16),
    }
    assert weights.of_packed(stored) == (8, 140)


def test_only_the_files_of_the_index_count(saved, tmp_path):
    tensors = load_file(saved / "model.safetensors")
    save_file(tensors, tmp_path / "model-00001-of-00001.safetensors", {"format": "pt"})
    save_file({f"again.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    assert set(weights.headers(Checkpoint(str(tmp_path)))) == set(tensors)


def test_the_type_comes_from_the_files_if_the_configuration_names_none(saved):
    checkpoint = Checkpoint(str(saved))
    config = read_config(checkpoint)
    config.dtype = None
    assert weights.dtype_of(config, checkpoint, "auto") == torch.bfloat16
    assert weights.dtype_of(config, checkpoint, "float32") == torch.float32


def test_an_adapter_in_half_precision_counts_in_float32(tmp_path):
    save_file({"a": torch.zeros(10, dtype=torch.bfloat16)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert weights.adapter_bytes(tmp_path) == 40


@pytest.mark.parametrize(
    "header",
    [b"", b"\xff" * 16, (2**63).to_bytes(8, "little"), b"\x02\0\0\0\0\0\0\0[]", b'\x0a\0\0\0\0\0\0\0{"a": [1]}'],
)
def test_a_lying_header_of_safetensors_is_refused(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(header)
    with pytest.raises(InputError, match="as safetensors"):
        weights.of_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("entry", [{}, {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, {"dtype": "F32"}, 3])
def test_a_tensor_without_a_valid_place_is_refused(tmp_path, entry):
    text = json.dumps({"a": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InputError, match="as safetensors"):
        weights.of_file(tmp_path / "x.safetensors")


def test_an_index_with_a_name_too_long_for_a_file_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x" * 999}}))
    with pytest.raises(InputError, match="which isn't in the folder"):
        folder.check(tmp_path / "m")


def test_an_index_cannot_name_files_elsewhere(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(InputError, match=r"names the file '\.\./secret\.safetensors', which isn't in the folder"):
        folder.shards(tmp_path)
