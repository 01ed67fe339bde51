"""Quantized models are measured with the numbers that their weights stand for."""

import json
import re

import pytest
import torch
from conftest import saved, tiny_model
from safetensors.torch import load_file, save_file
from torch import nn

from internal_policy import errors
from internal_policy.errors import InputError
from internal_policy.models import checkpoint, packed, quantized
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.head import unembedding
from internal_policy.models.loading import load
from internal_policy.models.policy import policy_logits
from internal_policy.models.quantized import facts, quantization
from internal_policy.scans.scan import scan
from internal_policy.tasks.rollouts import of_ids

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The numbers that four bits of MXFP4 stand for."""
SIZES = {"hidden_size": 64, "intermediate_size": 64}


class Packed(nn.Linear):
    """A linear module with eight-bit weights and a scale for each row, as several libraries have it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        codes = (linear.weight / scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.weight * self.scale)


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A tiny Llama in float32; on a CPU, four bits need multiples of 32 rows."""
    return saved(tiny_model("llama", head_dim=32, **SIZES).float(), tokenizer, tmp_path / "model")


def rewritten(folder, settings, change):
    """The folder after `change` rewrote its weights, with quantization settings in config.json."""
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


def in_fp8(weights):
    """Fine-grained FP8: one scale for each block of 128 x 128; each of these matrices is one block."""
    names = [name for name in weights if name.endswith("proj.weight")]
    scales = {f"{name}_scale_inv": weights[name].abs().max().view(1, 1) / 448 for name in names}
    codes = {name: (weights[name] / scales[f"{name}_scale_inv"]).to(torch.float8_e4m3fn) for name in names}
    return {**weights, **scales, **codes}


def test_fp8_weights_are_dequantized_exactly_where_they_cannot_be_multiplied(folder):
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    rewritten(folder, settings, in_fp8)
    stored = load_file(folder / "model.safetensors")
    model, _ = load(str(folder), device="cpu", dtype="float32")
    for name, weight in model.named_parameters():
        expected = stored[name].float() * stored[f"{name}_scale_inv"] if f"{name}_scale_inv" in stored else stored[name]
        assert torch.equal(weight, expected)
    words = "fp8 float8, 8 bits: down_proj, gate_proj, up_proj, k_proj, o_proj, q_proj, v_proj; weights dequantized to "
    assert str(quantization(model)) == f"{words}float32; unembedding not quantized"


def test_mxfp4_experts_are_dequantized_exactly(tmp_path, tokenizer):
    model = tiny_model("gpt_oss", **SIZES).bfloat16()
    folder, expected = saved(model, tokenizer, tmp_path / "model"), {}

    def in_mxfp4(weights):
        found = {}
        for name, weight in weights.items():
            if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                found[name] = weight
                continue
            blocks = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
            exponent = blocks.abs().amax(-1).log2().floor() - 2
            scale = exponent.exp2()[..., None]
            codes = ((blocks / scale)[..., None] - FP4).abs().argmin(-1)
            expected[name] = (FP4[codes] * scale).flatten(-2).transpose(1, 2)
            low, high = codes.unflatten(-1, (16, 2)).unbind(-1)
            found[f"{name}_blocks"] = (low | high << 4).to(torch.uint8)
            found[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
        return found

    rewritten(folder, {"quant_method": "mxfp4"}, in_mxfp4)
    model, _ = load(str(folder), device="cpu")
    assert expected
    assert all(torch.equal(model.state_dict()[name].float(), weight) for name, weight in expected.items())
    words = "mxfp4, 4 bits: down_proj, gate_up_proj; weights dequantized to bfloat16; unembedding not quantized"
    assert str(quantization(model)) == words


def test_a_model_that_is_not_quantized_has_no_quantization(folder):
    model, _ = load(str(folder), device="cpu")
    assert quantization(model) is None
    assert facts(model) == {}


def test_an_eight_bit_unembedding_is_refused_although_its_shape_is_right():
    model = tiny_model("llama")
    model.lm_head = Packed(model.lm_head)
    with pytest.raises(InputError, match=r"is a Packed whose weight isn't one plain matrix\..*internal_policy\.load"):
        unembedding(model)


def test_a_quantized_unembedding_is_dequantized_once(input_ids):
    model = tiny_model("llama")
    model.lm_head = Packed(model.lm_head)
    own, exact = model(input_ids).logits, model.lm_head.weight * model.lm_head.scale
    assert quantized.dequantize_unembedding(model)
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(unembedding(model).weight, exact)
    assert torch.equal(policy_logits(model, "final", input_ids=input_ids), model(input_ids).logits)
    assert torch.equal(model(input_ids).logits, own)
    assert not quantized.dequantize_unembedding(model)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_scale_is_found(broken):
    linear = Packed(nn.Linear(4, 4, bias=False))
    linear.scale.data[2] = broken
    assert [name for name, part in packed.numbers(linear) if not part.isfinite().all()] == ["scale"]


def test_nan_is_found_in_eight_bit_floats():
    linear = nn.Linear(4, 4, bias=False)
    linear.weight = nn.Parameter(torch.full((4, 4), float("nan")).to(torch.float8_e4m3fn), requires_grad=False)
    assert not next(part for _, part in packed.numbers(linear)).isfinite().any()


@pytest.mark.parametrize(
    ("settings", "extra", "package"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes", "bitsandbytes"),
        ({"quant_method": "torchao"}, "torchao", "torchao"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors", "compressed_tensors"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(settings, extra, package, folder, monkeypatch):
    rewritten(folder, settings, dict)
    found = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(InputError, match=rf"This needs {package}.*pip install 'internal-policy\[{extra}\]'"):
        load(str(folder), device="cpu")


def test_gptq_says_what_transformers_needs(folder, monkeypatch):
    rewritten(folder, {"quant_method": "gptq", "bits": 4}, dict)
    monkeypatch.setattr("transformers.quantizers.quantizer_gptq.is_optimum_available", lambda: False)
    with pytest.raises(InputError, match=r"requires optimum \(`pip install optimum`\)"):
        load(str(folder), device="cpu")


def test_quantized_weights_are_not_quantized_again(folder):
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    rewritten(folder, settings, in_fp8)
    with pytest.raises(InputError, match=r"is already quantized \(fp8\)\. Don't quantize it to nf4\."):
        load(str(folder), device="cpu", quantize="nf4")


def test_quantizing_changes_the_identity(folder):
    plain, nf4, int8 = (checkpoint.identity(Checkpoint(str(folder), quantize=kind)) for kind in (None, "nf4", "int8"))
    assert nf4 == f"{plain} in nf4"
    assert int8 == f"{plain} in int8"


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4), ("int8", 8)])
def test_bitsandbytes_quantizes_all_but_the_unembedding(kind, bits, folder, bitsandbytes, input_ids):
    model, tokenizer = load(str(folder), device="cpu", quantize=kind)
    modules = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    assert str(quantization(model)) == f"bitsandbytes {kind}, {bits} bits: {modules}; unembedding not quantized"
    whole = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(model.state_dict()[name], whole[name])
    assert torch.equal(policy_logits(model, "final", input_ids=input_ids), model(input_ids).logits)
    tables = scan(model, tokenizer, of_ids(tokenizer, [[5, 9, 13, 40, 41, 42]]), sites=["resid_post"])
    assert tables.record["quantization"]["scheme"] == kind
    assert tables.record["quantization"]["unembedding"] == "not quantized"


def test_packed_weights_are_not_trained_without_an_adapter(folder, bitsandbytes):
    model, _ = load(str(folder), device="cpu", quantize="int8")
    with pytest.raises(InputError, match=r"quantized by bitsandbytes can't be trained\. Train an adapter"):
        quantized.check_trainable(model)


def test_four_bits_are_not_trained_on_a_cpu(folder, bitsandbytes):
    model, _ = load(str(folder), device="cpu", quantize="nf4")
    with pytest.raises(InputError, match=r"passes no gradient through 4-bit weights on a CPU\. Train on a GPU"):
        quantized.check_trainable(model)


@pytest.mark.filterwarnings("ignore")  # of peft and bitsandbytes
def test_an_adapter_on_quantized_weights_is_read_and_trained(folder, bitsandbytes, tmp_path, input_ids):
    peft = pytest.importorskip("peft")
    base, _ = load(str(folder), device="cpu")
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    model, _ = load(str(tmp_path / "adapter"), device="cpu", quantize="int8")
    quantized.check_trainable(model)
    assert facts(model)["quantization"]["scheme"] == "int8"
    policy_logits(model, "1.resid_post", input_ids=input_ids).logsumexp(-1).sum().backward()
    trained = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert trained
    assert all("lora" in name for name in trained)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_unembedding_of_bitsandbytes_is_dequantized(kind, folder, bitsandbytes, tmp_path, tokenizer):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = kind == "nf4"
    settings = BitsAndBytesConfig(
        load_in_4bit=four,
        load_in_8bit=not four,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["none"],
    )
    whole = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, device_map="cpu")
    head = whole.lm_head
    if kind == "nf4":
        exact = bitsandbytes.functional.dequantize_4bit(head.weight.data.clone(), head.weight.quant_state)
    else:
        exact = head.weight.data * head.weight.SCB[:, None] / 127
    model, _ = load(str(saved(whole, tokenizer, tmp_path / "packed")), device="cpu")
    found = unembedding(model).weight
    assert facts(model)["quantization"]["unembedding"] == "dequantized"
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


def test_nan_that_four_bits_cannot_hold_is_found_in_the_file(folder, bitsandbytes):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has NaN or infinite weights in model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(folder), device="cpu", quantize="nf4")


@pytest.mark.filterwarnings("ignore")
def test_torchao_weights_and_unembedding_are_read(folder, tmp_path, tokenizer, input_ids):
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    settings = TorchAoConfig(torchao.Int8WeightOnlyConfig(), include_input_output_embeddings=True)
    whole = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, device_map="cpu")
    exact = whole.lm_head.weight.dequantize()
    model, _ = load(str(saved(whole, tokenizer, tmp_path / "packed")), device="cpu")
    assert torch.equal(unembedding(model).weight, exact)
    assert re.match("torchao Int8WeightOnly, 8 bits: .*; unembedding dequantized$", str(quantization(model)))
    assert torch.equal(policy_logits(model, "final", input_ids=input_ids), model(input_ids).logits)


@pytest.mark.filterwarnings("ignore")
def test_compressed_tensors_are_read(folder, input_ids):
    pytest.importorskip("compressed_tensors")
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    read = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": read}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": [],
        "config_groups": {"group_0": group},
    }

    def in_fp8_by_row(weights):
        names = [name for name in weights if name.endswith(("proj.weight", "lm_head.weight"))]
        scales = {f"{name}_scale": weights[name].abs().amax(1, keepdim=True) / 448 for name in names}
        codes = {name: (weights[name] / scales[f"{name}_scale"]).to(torch.float8_e4m3fn) for name in names}
        return {**weights, **scales, **codes}

    rewritten(folder, settings, in_fp8_by_row)
    stored = load_file(folder / "model.safetensors")
    model, _ = load(str(folder), device="cpu", dtype="float32")
    exact = stored["lm_head.weight"].float() * stored["lm_head.weight_scale"]
    torch.testing.assert_close(unembedding(model).weight, exact, rtol=1e-6, atol=0)
    assert facts(model)["quantization"]["scheme"] == "float-quantized"
    assert torch.equal(policy_logits(model, "final", input_ids=input_ids), model(input_ids).logits)
