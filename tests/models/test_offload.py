"""A model that is spread over devices and the disk has the same numbers as one that is whole on a device."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from conftest import EVERY_FAMILY, all_points, moved, one_sentence, read, same, saved, tiny_model
from safetensors.torch import load_file, save_file
from torch import nn

import internal_policy as ip
from internal_policy.__main__ import main
from internal_policy.cli.scan import Scan, prepared
from internal_policy.errors import InputError
from internal_policy.models import offload
from internal_policy.models.head import unembedding
from internal_policy.models.passes import device_of
from internal_policy.scans.scan import scan
from internal_policy.tasks.rollouts import Rollout

TEXT = ["Mia has 47 apples and buys 385 more."]
REFUSED = {"dbrx", "gemma4", "jetmoe", "llama4", "llama4_text", "recurrent_gemma"}
"""Families whose code reads weights outside of their modules."""


def spread(folder: Path, memory: str = "1KB", **options: Any) -> Any:
    """The model in a folder, whose weights beyond some memory are on the disk, also those of the unembedding."""
    return ip.load(str(folder), device_map="auto", max_memory={"cpu": memory}, **options)[0]


def offloaded(model: nn.Module) -> int:
    return sum(map(offload.is_offloaded, model.modules()))


@pytest.fixture(scope="module")
def llamas(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Folders with a tiny Llama, one with its own unembedding and one with a tied one."""
    return {
        name: saved(tiny_model("llama", tie_word_embeddings=name == "tied"), tokenizer, tmp_path_factory.mktemp(name))
        for name in ("own", "tied")
    }


@pytest.fixture
def rollouts() -> list[Rollout]:
    return [Rollout("p", None, 0, tuple(range(5, 5 + n)), tuple(range(20, 33)), "r", None, True) for n in (3, 6)]


@pytest.mark.parametrize(("name", "memory"), [("own", "200KB"), ("tied", "1KB"), ("tied", "200KB")])
def test_a_scan_of_an_offloaded_model_has_the_same_numbers(llamas, tokenizer, name, memory, rollouts):
    whole, model = ip.load(str(llamas[name]), device="cpu")[0], spread(llamas[name], memory)
    assert 5 < offloaded(model) < 40
    assert not unembedding(model).weight.is_meta
    found = scan(model, tokenizer, rollouts)
    same(found, scan(whole, tokenizer, rollouts))
    assert found.record["device"] == "cpu"


@pytest.mark.parametrize(("point", "readout"), [("final", "raw"), ("1.attn_out", "norm"), ("2.resid_post", "raw")])
def test_an_offloaded_policy_samples_the_same_responses(llamas, tokenizer, point, readout):
    found = []
    for model in (ip.load(str(llamas["own"]), device="cpu")[0], spread(llamas["own"])):
        with ip.as_policy(model, point, readout):
            found.append(ip.generate(model, tokenizer, TEXT, samples=2, max_new_tokens=6))
    assert found[0] == found[1]


def test_hooks_see_the_same_states_of_an_offloaded_model(llamas, input_ids):
    whole: Any = ip.load(str(llamas["own"]), device="cpu")[0]
    model = spread(llamas["own"])
    points = all_points(whole)
    expected, found = read(whole, points, input_ids), read(model, points, input_ids)
    assert all(torch.equal(found[point], state) for point, state in expected.items())


def test_a_model_offloaded_to_memory_is_scanned_once_its_unembedding_is_kept(llamas, tokenizer, rollouts):
    whole, model = (ip.load(str(llamas["own"]), device="cpu")[0] for _ in range(2))
    cpu_offload(model, execution_device=torch.device("cpu"))  # as accelerate does where a GPU is too small
    with pytest.raises(InputError, match="The unembedding is offloaded"):
        scan(model, tokenizer, rollouts)
    offload.keep_unembedding(model)
    same(scan(model, tokenizer, rollouts), scan(whole, tokenizer, rollouts))


@pytest.mark.slow
def test_every_command_has_the_same_numbers_with_an_offloaded_model(llamas, problems, here):
    common = ["--model", str(llamas["own"]), "--problems", str(problems), "--max-new-tokens", "4", "--limit", "2"]
    tables = {}
    for name, options in {"whole": [], "spread": ["--device-map", "auto", "--max-memory", "cpu=100KB"]}.items():
        assert main(["scan", *common, *options, "-o", f"{name}.scan"]) == 0
        assert (
            main(["evaluate", *common, *options, "--samples", "2", "--at", "1.resid_post", "-o", f"{name}.eval"]) == 0
        )
        assert main(["fit-lens", *common, *options, "--steps", "2", "-o", f"{name}.safetensors"]) == 0
        tables[name] = [path.read_bytes() for path in sorted(here.glob(f"{name}.*/*.parquet"))]
    assert len(tables["whole"]) > 3
    assert tables["whole"] == tables["spread"]
    lenses = [load_file(f"{name}.safetensors") for name in tables]
    assert all(torch.equal(lenses[1][key], tensor) for key, tensor in lenses[0].items())


def test_memory_that_a_device_may_use_is_no_part_of_a_scans_question(folder):
    questions = [
        prepared(Scan(model=str(folder), device_map="auto", max_memory=sizes, offload_folder=parent)).question
        for sizes, parent in ((None, None), ("cpu=1GB", Path()))
    ]
    assert questions[0] == questions[1]


def test_experts_that_must_be_converted_go_to_the_offload_folder_while_the_model_exists(
    folders, tokenizer, tmp_path, rollouts
):
    model = spread(folders["mixtral"], offload_folder=tmp_path)
    assert list(tmp_path.glob("internal-policy-offload-*/*experts*.safetensors"))
    same(scan(model, tokenizer, rollouts), scan(tiny_model("mixtral"), tokenizer, rollouts))
    del model
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_an_offloaded_weight_that_is_nan_is_refused(tmp_path, tokenizer):
    folder = saved(tiny_model("llama"), tokenizer, tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"NaN or infinite weights in model.layers.1.mlp.up_proj.weight"):
        spread(folder)


BAD = {
    "20GB": "--max-memory is '20GB'. Write DEVICE=SIZE, such as 0=20GiB,cpu=60GiB.",
    "cpu=": "--max-memory is 'cpu='. Write DEVICE=SIZE, such as 0=20GiB,cpu=60GiB.",
    "cpu=lots": "--max-memory gives cpu 'lots'. Write a size such as 20GiB or 800MB.",
    "7=1GiB": "--max-memory names the device '7', but this machine has cpu.",
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "--dry-run"])
@pytest.mark.parametrize("sizes", BAD)
def test_memory_that_cannot_be_read_is_refused_in_a_sentence(asked, here, capsys, sizes, dry):
    assert main([*asked, "--device-map", "auto", "--max-memory", sizes, *dry]) == 2
    assert BAD[sizes] in capsys.readouterr().err


def test_memory_without_a_device_map_is_refused_before_work(asked, here, capsys, monkeypatch):
    monkeypatch.setattr("internal_policy.models.loading.load_model", None)
    assert main([*asked, "--max-memory", "cpu=1GB"]) == 2
    one_sentence(capsys, "--max-memory has no effect without --device-map. Add --device-map auto.", here)


def test_an_offload_folder_that_does_not_exist_is_refused(asked, here, capsys):
    assert main([*asked, "--device-map", "auto", "--offload-folder", "nowhere"]) == 2
    assert "Can't write to --offload-folder nowhere" in capsys.readouterr().err


def test_an_offloaded_model_cannot_be_trained(llamas):
    with pytest.raises(InputError, match="Training changes weights in place, but --device-map offloads some of them"):
        offload.check_trainable(spread(llamas["own"]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_cannot_be_added_to_an_offloaded_model(llamas, tmp_path):
    import peft

    adapted = peft.get_peft_model(
        ip.load(str(llamas["own"]), device="cpu")[0], peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    moved(adapted).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is an adapter, which can't be added to a model that --device-map offloads"):
        spread(tmp_path)


def test_an_unembedding_sharded_by_tensor_parallelism_is_refused(llama, tmp_path):
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        llama.lm_head.weight = nn.Parameter(distribute_tensor(llama.lm_head.weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(InputError, match="The unembedding is sharded over devices"):
            unembedding(llama)
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_is_scanned_alike_when_it_is_offloaded_or_refused(family, tokenizer, tmp_path, rollouts):
    folder = saved(tiny_model(family), tokenizer, tmp_path)
    if family in REFUSED:
        with pytest.raises(InputError, match="reads weights before they are loaded"):
            spread(folder)
        return
    model = spread(folder)
    assert offloaded(model)
    assert device_of(model).type == "cpu"
    same(scan(model, tokenizer, rollouts), scan(ip.load(str(folder), device="cpu")[0], tokenizer, rollouts))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "unembedding"), [("qwen3", "pretend:0"), ("gemma2", "pretend:1")])
def test_layers_on_two_devices_have_the_same_numbers(family, unembedding, tokenizer, tmp_path):
    folder = saved(tiny_model(family), tokenizer, tmp_path)
    program = [sys.executable, str(Path(__file__).parents[1] / "placed.py"), str(folder), unembedding]
    run = subprocess.run(program, capture_output=True, text=True, check=False)
    assert run.stdout == f"equal, measured on {unembedding}\n", run.stderr[-2000:]
