"""Scan a model whose layers lie on two devices that only claim to be different, and print whether the numbers change.

Run as a program, because it registers a device for the whole process. A tensor "on" one of these devices is on the CPU,
and, as on GPUs, no operation takes tensors of both.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

BACKEND = "pretend"
COPIES = {"aten::_to_copy", "aten::to", "aten::copy_"}
"""Operations between devices."""
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_"}
"""Operations that also take indices on the CPU."""


class Placed(torch.Tensor):
    """A tensor on the CPU that claims to be on another device."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, device: Any) -> "Placed":
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), device=device, **shape)

    def __init__(self, held: Tensor, device: Any) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, op: Any, _: Any, args: Any = (), options: Any = None) -> Any:
        return computed(op, args, options or {})


def computed(op: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The result of an operation, on the device of its tensors or the one that it names."""
    parts = tree_flatten((args, options))[0]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    name = op._schema.name
    devices = {str(tensor.device) for tensor in tensors if tensor.dim()} - ({"cpu"} if name in INDEXED else set())
    if len(devices) > 1 and name not in COPIES:
        raise RuntimeError(f"{name} was given tensors on {sorted(devices)}")
    named = [part for part in parts if isinstance(part, torch.device)]
    first = tensors[0].device if name in COPIES else next(iter(devices), "cpu")
    place = str(named[0] if named else first)
    known = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Placed)}

    def held(part: Any) -> Any:
        if isinstance(part, torch.device):
            return torch.device("cpu")
        return part.held if isinstance(part, Placed) else part

    def placed(part: Any) -> Any:
        if not isinstance(part, Tensor) or BACKEND not in place:
            return part
        same = known.get(id(part))
        return same if same is not None and str(same.device) == place else Placed(part, place)

    return tree_map(placed, op(*tree_map(held, args), **tree_map(held, dict(options))))


class Devices(TorchDispatchMode):
    """Inside, tensors can be made on the devices."""

    def __torch_dispatch__(self, op: Any, _: Any, args: Any = (), options: Any = None) -> Any:
        return computed(op, args, options or {})


class Literals(TorchFunctionMode):
    """Inside, so can tensors of Python numbers, and numbers can be read from them."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        if function is torch.tensor and BACKEND in str(options.get("device")):
            place = options.pop("device")
            return Placed(torch.tensor(*args, **options), place)
        if function is torch.Tensor.tolist and isinstance(args[0], Placed):
            return args[0].held.tolist()
        return function(*args, **options)


def main(folder: Path, unembedding: str) -> None:
    """Compare the model in a folder with one whose later layers are on another device than its embedding."""
    import pandas as pd
    from accelerate import dispatch_model

    import internal_policy as ip
    from internal_policy.models import packed

    whole: Any
    model: Any
    found: Any
    expected: Any
    packed.is_plain = lambda _: True  # it is a tensor of our own
    (whole, tokenizer), (model, _) = (ip.load(str(folder), device="cpu") for _ in range(2))
    near, far = f"{BACKEND}:0", f"{BACKEND}:1"
    layers: dict[str, Any] = {
        f"model.layers.{n}": near if n < 1 else far for n in range(whole.config.num_hidden_layers)
    }
    others = {
        "model.embed_tokens": near,
        "model.rotary_emb": near,
        "model.norm": far,
        "lm_head": unembedding,
    }
    with Devices(), Literals():
        dispatch_model(model.requires_grad_(False), layers | others)
        for text in (["Mia has 47 apples and buys 385 more."], ["The answer is", "An ocean of tokens"]):
            found, expected = (ip.scan(each, tokenizer, text).source for each in (model, whole))
            for kind in ("policies", "layers"):
                tables = (scan.arrow[kind].to_pandas() for scan in (found, expected))
                pd.testing.assert_frame_equal(*tables, check_exact=True)
        chosen: Any = (("final", "raw"), ("1.attn_out", "norm"))
        for point, readout in chosen:
            responses = []
            for each in (whole, model):
                with ip.as_policy(each, point, readout):
                    responses.append(ip.generate(each, tokenizer, ["What is 3 + 5?"], max_new_tokens=4))
            assert responses[0] == responses[1]
    print("equal, measured on", found.record["device"])


if __name__ == "__main__":
    torch.inference_mode = torch.no_grad  # views of a wrapper can't be inference tensors
    backend_registration._setup_privateuseone_for_python_backend(BACKEND)
    main(Path(sys.argv[1]), sys.argv[2])
