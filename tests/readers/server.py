"""A server such as NDIF: runs nnsight's requests in a process with torch, transformers and nnsight, and no more."""

import io
import sys
from pathlib import Path
from typing import Any

FOLDER, ASKED, ANSWER, HOLDS = sys.argv[1:]
MISSING = ["internal_policy", "jaxtyping", "beartype", "pandas", "pyarrow", "datasets", "scipy", "rich", "tyro"]
sys.modules.update(dict.fromkeys(MISSING))  # pyright: ignore[reportArgumentType, reportCallIssue]

import torch  # noqa: E402
import zstandard  # noqa: E402
from nnsight import TransformersModel  # noqa: E402
from nnsight.intervention.envoy import Envoy  # noqa: E402
from nnsight.schema.request import RequestModel  # noqa: E402
from nnsight.tracing.tracer import _saves, dec, inc  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

torch.set_num_threads(1)
held = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto", attn_implementation="sdpa")
model = TransformersModel(held, tokenizer=PreTrainedTokenizerFast.from_pretrained(FOLDER))
objects = model._remoteable_persistent_objects()
if HOLDS == "nothing":  # NDIF's sandbox: the block runs apart from the model, reads hidden states and calls modules
    objects = {name: thing if name == "Interleaver" else None for name, thing in objects.items()}
    live, run, call = dict(model.named_modules()), Envoy.interleave, Envoy.__call__

    def elsewhere(self: Envoy, fn: Any, batcher: Any = None, **kwargs: Any) -> Any:
        ((inputs, named),) = batcher.invokes
        return run(model, getattr(model, fn.__name__), *inputs, **named, **kwargs)

    Envoy.interleave = elsewhere
    Envoy.__call__ = lambda self, *args, **kwargs: call(live[self.path], *args, **kwargs)
tracer = RequestModel.deserialize(Path(ASKED).read_bytes(), objects, compress=True)
with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):  # NDIF does this too, for such a model
    inc()
    tracer.execute(tracer.info.code)
    kept = {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in _saves()}
    dec()
buffer = io.BytesIO()
torch.save(kept, buffer)
Path(ANSWER).write_bytes(zstandard.ZstdCompressor().compress(buffer.getvalue()))
assert not any(sys.modules.get(name) for name in MISSING)
