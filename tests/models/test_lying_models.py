"""With wrong values in a model's files, a scan works or ends with exit code 2 and one sentence, never a traceback."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
from conftest import saved, tiny_model

from internal_policy.__main__ import main

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
VALUES = ["x", "", None, -1, 0, 1, 3.5, 10**9, 10**30, 1e308, float("nan"), [], {}, True, [None], [1, "x"], {"x": 1}]
"""Replacements for a value, besides leaving it out."""
MORE = {
    "config.json": ["rope_scaling", "sliding_window", "layer_types", "quantization_config", "auto_map", "dtype"],
    "generation_config.json": ["temperature", "max_length"],
    "tokenizer_config.json": ["added_tokens_decoder", "tokenizer_class", "bos_token", "unk_token", "auto_map"],
    "tokenizer.json": [],
    "adapter_config.json": [],
}
"""File -> keys that are missing here but allowed."""
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    return saved(tiny_model("llama").float(), tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> Path:
    path = tmp_path_factory.mktemp("adapter")
    model = peft.get_peft_model(tiny_model("llama").float(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(path)
    written = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**written, "base_model_name_or_path": str(base)}))
    return path


@pytest.fixture(params=MORE)
def file(request, base, adapter) -> Path:
    """One of the files, in its folder."""
    return (adapter if request.param == "adapter_config.json" else base) / request.param


def places(value: Any, before: Place = ()) -> Iterator[Place]:
    """The places in a JSON value, up to three levels deep and without the vocabulary."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inside in items:
        yield (*before, key)
        if len(before) < 2 and key not in ("vocab", "merges"):
            yield from places(inside, (*before, key))


def changed(value: Any, place: Place, new: Any) -> Any:
    """A copy of a JSON value with `new` at `place`, or without that place if `new` is `...`."""
    copy = json.loads(json.dumps(value))
    inside: Any = copy
    for key in place[:-1]:
        inside = inside[key]
    if new is not ...:
        inside[place[-1]] = new
    else:
        inside.pop(place[-1], *([] if isinstance(inside, list) else [None]))
    return copy


def scanned(file: Path, text: str | bytes, here: Path, capsys) -> tuple[int, str]:
    """Exit code and stderr of a scan of the folder after replacing the text of the file."""
    shutil.rmtree(here / "m", ignore_errors=True)
    shutil.copytree(file.parent, here / "m")
    (here / "m" / file.name).write_bytes(text if isinstance(text, bytes) else text.encode())
    words = ["--limit", "1", "--max-new-tokens", "2", "--layers", "0", "--sites", "resid_post", "--top-k", "0"]
    code = main(["scan", "--model", "m", "--device", "cpu", *words])
    return code, capsys.readouterr().err


def check(code: int, said: str) -> None:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) in ((0, 0), (2, 1)), said
    assert "Traceback" not in said


WHOLE_FILES = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda _: "",
    "a list": lambda text: f"[{text}]",
    "null": lambda _: "null",
    "no UTF-8": lambda _: b'{"x": "\xff"}',
    "too deep": lambda _: '{"x": ' + "[" * 200_000,
    "a number without end": lambda _: '{"x": 1' + "0" * 5000 + "}",
}


@pytest.mark.parametrize("kind", WHOLE_FILES)
def test_an_error_names_a_file_that_is_not_a_json_object(kind, file, here, capsys):
    code, said = scanned(file, WHOLE_FILES[kind](file.read_text()), here, capsys)
    check(code, said)
    assert code == 2
    assert file.name in said


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "generation_config.json", "chat_template.jinja", "model.safetensors"]
)
def test_an_error_names_a_folder_where_a_file_belongs(name, base, here, capsys):
    shutil.copytree(base, here / "m")
    (here / "m" / name).unlink(missing_ok=True)
    (here / "m" / name).mkdir()
    code = main(["scan", "--model", "m", "--device", "cpu", "--limit", "1", "--max-new-tokens", "2"])
    said = capsys.readouterr().err
    check(code, said)
    assert code == 2
    assert f"{name} is a folder" in said


LIES = {
    "a text for a flag": ("config.json", ("tie_word_embeddings",), "x", "tie_word_embeddings"),
    "no heads": ("config.json", ("num_attention_heads",), 0, "config.json"),
    "no layers": ("config.json", ("num_hidden_layers",), 0, "claims 0 layers; a model has at least one"),
    "no vocabulary": ("config.json", ("vocab_size",), 0, "claims a vocabulary of 0 tokens; a model has at least one"),
    "an unknown quantization": (
        "config.json",
        ("quantization_config",),
        {"quant_method": "foo"},
        "has the quant_method 'foo', which transformers doesn't know and would ignore",
    ),
    "fewer layers than none": ("config.json", ("num_hidden_layers",), -1, "claims -1 layers"),
    "layers without end": ("config.json", ("num_hidden_layers",), 10**9, "config.json claims"),
    "layers past 64 bits": ("config.json", ("num_hidden_layers",), 10**30, "config.json claims"),
    "a dtype that is a number": ("config.json", ("dtype",), 3, "config.json"),
    "a window that is a text": ("config.json", ("sliding_window",), "x", "config.json"),
    "a padding id that is not there": ("config.json", ("pad_token_id",), 999, "config.json"),
    "ends that are texts": ("generation_config.json", ("eos_token_id",), "x", "eos_token_id is 'x'"),
    "ends past 64 bits": ("generation_config.json", ("eos_token_id",), [10**30], "eos_token_id is"),
    "a length that is a list": ("tokenizer_config.json", ("model_max_length",), [], "tokenizer_config.json"),
    "an end that is no token": ("tokenizer_config.json", ("eos_token",), "", "tokenizer_config.json"),
    "a class that is a number": ("tokenizer_config.json", ("tokenizer_class",), 1, "tokenizer_config.json"),
    "a model of no kind": ("tokenizer.json", ("model", "type"), "x", "tokenizer.json"),
    "a kind of adapter": ("adapter_config.json", ("peft_type",), "x", "adapter_config.json"),
    "a rank that is a text": ("adapter_config.json", ("r",), "x", "adapter_config.json"),
    "a rank without end": ("adapter_config.json", ("r",), 10**9, "claims a rank of 1000000000"),
    "a rank of one module without end": (
        "adapter_config.json",
        ("rank_pattern",),
        {"layers.0.self_attn.q_proj": 10**9},
        "claims a rank of 1000000000",
    ),
    "a base that is a list": ("adapter_config.json", ("base_model_name_or_path",), [], "adapter_config.json has base"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_error_names_the_file_or_field_of_a_wrong_value(lie, base, adapter, here, capsys):
    name, place, value, words = LIES[lie]
    file = (adapter if name == "adapter_config.json" else base) / name
    code, said = scanned(file, json.dumps(changed(json.loads(file.read_text()), place, value)), here, capsys)
    check(code, said)
    assert code == 2
    assert words in said


INDEXES = {
    "no map": {"metadata": {}},
    "a map of numbers": {"weight_map": {"lm_head.weight": 3}},
    "a file that is not there": {"weight_map": {"lm_head.weight": "model-2.safetensors"}},
    "a file elsewhere": {"weight_map": {"lm_head.weight": "../base/model.safetensors"}},
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_error_names_a_wrong_weight_index(kind, base, here, capsys):
    code, said = scanned(base / "model.safetensors.index.json", json.dumps(INDEXES[kind]), here, capsys)
    check(code, said)
    assert code == 2
    assert "model.safetensors.index.json" in said


@pytest.mark.slow
def test_no_file_content_causes_a_traceback(file, here, capsys):
    written = json.loads(file.read_text())
    where = list(dict.fromkeys([*places(written), *((key,) for key in MORE[file.name])]))
    lies = [(place, value) for place in where for value in [*VALUES, ...]]
    for place, value in random.Random(0).sample(lies, min(len(lies), 100)):
        code, said = scanned(file, json.dumps(changed(written, place, value)), here, capsys)
        try:
            check(code, said)
        except AssertionError as error:
            raise AssertionError(f"{file.name} with {place} = {value!r}: {error}") from error
