"""GGUF files are read with the weights that they stand for, and with their tokenizer."""

import json

import pytest
import torch
from conftest import saved, tiny_model

from internal_policy import errors
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.models import checkpoint, tokenizers
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.loading import load
from internal_policy.models.policy import policy_logits
from internal_policy.models.quantized import quantization

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf")


def called(name: str) -> str:
    """The name of a weight in a GGUF file."""
    module, _, weight = name.rpartition(".")
    if module in MODULES:
        return f"{MODULES[module]}.{weight}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{MODULES[inner]}.{weight}"


def interleaved(weight, heads):
    """The rows of a query or key matrix in the order of llama.cpp, whose rotary pairs are neighbours."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def separated(weight, heads):
    """The rows in the order of transformers."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def heads_of(name, family):
    """How many heads a matrix has whose rows llama.cpp reorders; 0 for other weights and families."""
    return {"q_proj": 2, "k_proj": 1}.get(name.split(".")[-2], 0) if family == "llama" else 0


def written(gguf, path, model, tokenizer, kind):
    """Write a model and its tokenizer as a GGUF file whose matrices have the type `kind`."""
    config, family = model.config, model.config.model_type
    file = gguf.GGUFWriter(path, family)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_vocab_size(config.vocab_size)
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list([known.get(number, f"[{number}]") for number in range(config.vocab_size)])
    special = {*tokenizer.all_special_ids}
    normal, control, unused = 1, 3, 5
    types = {number: control if number in special else normal for number in known}
    file.add_token_types([types.get(number, unused) for number in range(config.vocab_size)])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    file.add_token_merges([" ".join(pair) for pair in merges])
    file.add_eos_token_id(tokenizer.eos_token_id)
    file.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        heads = heads_of(name, family)
        values = (interleaved(weight, heads) if heads else weight).numpy()
        if values.ndim == 1:
            file.add_tensor(called(name), values)
        else:
            quantized = gguf.GGMLQuantizationType[kind]
            file.add_tensor(called(name), gguf.quantize(values, quantized), raw_dtype=quantized)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture
def folder(gguf, tmp_path, tokenizer):
    """A folder with a tiny Llama in two types."""
    model = tiny_model("llama", head_dim=32, **SIZES).float()
    for kind in ("Q8_0", "Q4_0"):
        written(gguf, tmp_path / f"tiny-{kind}.gguf", model, tokenizer, kind)
    return tmp_path


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize(("family", "width"), [("llama", 32), ("qwen3", 128)])
def test_weights_are_dequantized_exactly(family, width, kind, gguf, tmp_path, tokenizer, input_ids):
    whole = tiny_model(family, head_dim=width, **SIZES).float()
    path = written(gguf, tmp_path / "tiny.gguf", whole, tokenizer, kind)
    model, _ = load(str(tmp_path), gguf_file="tiny.gguf", device="cpu")
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, weight in model.named_parameters():
        tensor, heads = held[called(name)], heads_of(name, family)
        exact = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(weight, separated(exact, heads) if heads else exact), name
    words = str(quantization(model))
    assert words.startswith(f"gguf {kind}: token_embd, attn_q, attn_k,")
    assert words.endswith("; weights dequantized to float32; unembedding dequantized")
    assert torch.equal(policy_logits(model, "final", input_ids=input_ids), model(input_ids).logits)


def test_the_file_holds_the_tokenizer_and_its_template(folder, tokenizer):
    found = tokenizers.load_tokenizer(Checkpoint(str(folder), gguf_file="tiny-Q8_0.gguf"))
    text = "What is 47 + 385?"
    assert found(text).input_ids == tokenizer(text).input_ids
    assert (found.eos_token, found.chat_template) == (tokenizer.eos_token, tokenizer.chat_template)
    assert not tokenizers.inserts_date(Checkpoint(str(folder), gguf_file="tiny-Q8_0.gguf"), None)


def test_the_identity_is_that_of_the_file(folder):
    found = {checkpoint.identity(Checkpoint(str(folder), gguf_file=path.name)) for path in folder.glob("*.gguf")}
    assert len(found) == 2
    assert all(identity.startswith("sha256 ") for identity in found)


def test_a_scan_of_a_gguf_file_names_its_types(folder, here, capsys):
    words = ["--model", str(folder), "--gguf-file", "tiny-Q4_0.gguf", "--text", "What is 47 + 385?"]
    assert main(["scan", *words, "--sites", "resid_post"]) == 0
    assert "Quantized weights: gguf Q4_0: token_embd" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", [None, "other.gguf"])
def test_a_folder_with_gguf_files_lists_them(name, folder):
    with pytest.raises(InputError, match=r"tiny-Q4_0\.gguf, tiny-Q8_0\.gguf: choose one with --gguf-file"):
        load(str(folder), gguf_file=name, device="cpu")


def test_the_path_of_a_gguf_file_is_no_model(folder):
    with pytest.raises(InputError, match=r"For a GGUF file, give its folder"):
        load(str(folder / "tiny-Q4_0.gguf"), device="cpu")


def test_a_folder_without_gguf_files_says_so(tmp_path, tokenizer):
    saved(tiny_model("llama"), tokenizer, tmp_path / "model")
    with pytest.raises(InputError, match=r"There is no GGUF file 'a\.gguf' in .*Use a folder that has one\."):
        load(str(tmp_path / "model"), gguf_file="a.gguf", device="cpu")


def test_gguf_without_its_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").touch()
    found = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(InputError, match=r"This needs gguf, .*pip install 'internal-policy\[gguf\]'"):
        load(str(tmp_path), gguf_file="a.gguf", device="cpu")


def test_a_damaged_gguf_file_is_refused(gguf, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(InputError, match=r"Can't load "):
        load(str(tmp_path), gguf_file="a.gguf", device="cpu")


def test_gguf_weights_are_not_quantized_again(folder):
    with pytest.raises(InputError, match=r"is already quantized \(gguf\)\. Don't quantize it to nf4\."):
        load(str(folder), gguf_file="tiny-Q4_0.gguf", quantize="nf4", device="cpu")
