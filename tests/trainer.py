"""A BuPO trainer of a tiny model for tests; as a script, it runs as one of several processes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from conftest import tiny_model
from datasets import Dataset

from internal_policy.train.bupo import BuPOTrainer
from internal_policy.train.configuration import BuPOConfig

PROMPTS = [f"What is {a} + {b}?" for a in range(3, 7) for b in range(2, 4)]


def by_length(completions: list[Any], **_: Any) -> list[float]:
    """A reward that varies for a random model: the share of letters in a response."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [sum(letter.isalpha() for letter in text) / max(len(text), 1) for text in texts]


def odd(completions: list[Any], **_: Any) -> list[float]:
    """A reward of 0 or 1; for a random model, it is the same for both responses to about half of the prompts."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [float(sum(map(ord, text)) % 2) for text in texts]


def alternating(completions: list[Any], **_: Any) -> list[float]:
    """A reward of 0 or 1, by place, so that every prompt has both."""
    return [float(place % 2) for place in range(len(completions))]


class Fixed(BuPOTrainer):
    """Make responses from the prompt and their number alone, to compare numbers of processes."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        first = self.accelerator.process_index * len(prompt_ids)
        made = []
        for number, prompt in enumerate(prompt_ids, first):
            seeded = torch.Generator().manual_seed(1000 * sum(prompt) + number)
            made.append(torch.randint(5, 256, (4 + number % 3,), generator=seeded).tolist())
        return made, None


class Sharded(Fixed):
    """FSDP on a CPU, although accelerate only shards for GPUs."""

    def create_accelerator_and_postprocess(self) -> None:
        PartialState().distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()
        assert self.is_fsdp_enabled


def trainer(folder: Path, tokenizer: Any, model: Any = None, kind: Any = BuPOTrainer, **options: Any) -> Any:
    """A generation batch is 8 responses to 4 prompts in 4 passes and 2 updates, unless `options` change that."""
    reward = options.pop("reward", by_length)
    reward = globals()[reward] if isinstance(reward, str) else reward
    extra = {name: options.pop(name) for name in ("callbacks", "eval_dataset", "peft_config") if name in options}
    config = BuPOConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 2,
            "steps_per_generation": 4,
            "gradient_accumulation_steps": 2,
            "num_generations": 2,
            "max_completion_length": 6,
            "learning_rate": 1e-2,
            "max_steps": 8,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "logging_steps": 1,
            **options,
        }
    )
    rows = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    model = tiny_model("qwen3") if model is None else model
    return kind(model, reward, config, train_dataset=rows, processing_class=tokenizer, **extra)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the weights."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


if __name__ == "__main__":
    from transformers import AutoTokenizer

    asked = json.loads(sys.argv[1])
    folder = Path(asked["folder"])
    torch.set_num_threads(1)
    sharded = "ACCELERATE_USE_FSDP" in os.environ
    kind = Sharded if sharded else Fixed
    run = trainer(folder, AutoTokenizer.from_pretrained(asked["tokenizer"]), kind=kind, **asked["options"])
    run.train()
    state: Any
    if sharded:
        assert type(run.model_wrapped).__name__.startswith("FSDP"), type(run.model_wrapped)
        state = run.accelerator.get_state_dict(run.model_wrapped)
    else:
        state = run.accelerator.unwrap_model(run.model).state_dict()
    if run.is_world_process_zero():
        torch.save({name: tensor.clone() for name, tensor in state.items()}, asked["output"])
    run.accelerator.end_training()
    sys.stdout.flush()
    os._exit(0)  # a gloo thread that outlives Python may abort the process
