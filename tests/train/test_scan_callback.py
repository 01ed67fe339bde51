"""Scans during any Trainer: training isn't changed, and the study is that of the weights at each step."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import internal_policy as ip
from internal_policy.errors import InputError
from internal_policy.scans import study
from internal_policy.tasks.rollouts import Rollout
from internal_policy.train.scan_callback import ScanCallback

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
ROLLOUTS = [Rollout("", None, 0, (5, 6, 7), (8, 9, 10, n), "", None, True) for n in range(11, 16)]
TEXTS = [f"What is {n} + 5? It is {n + 5}." for n in range(8)]


def dropped_out() -> Any:
    """A tiny model with dropout, whose weights depend on every random number drawn in training."""
    return tiny_model("llama", attention_dropout=0.3).float()


def watch(**more: Any) -> ScanCallback:
    return ScanCallback(ROLLOUTS, every=2, readouts=["raw"], measures=["entropy", "norm"], **more)


def options(folder: Any, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-2,
        "report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 10, **more,
    }  # fmt: skip


def plain(folder: Any, tokenizer: Any, callbacks: list[TrainerCallback], model: Any = None, **more: Any) -> Any:
    """A Trainer of transformers."""
    ids = [tokenizer(text)["input_ids"][:16] for text in TEXTS]
    rows: Any = [{"input_ids": each, "labels": each} for each in ids]
    arguments: Any = TrainingArguments(**options(folder, **{"per_device_train_batch_size": 1, **more}))
    model = model or dropped_out()
    return Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks)


def sft(folder: Any, tokenizer: Any, callbacks: list[TrainerCallback], **more: Any) -> Any:
    """TRL's SFTTrainer."""
    trl: Any = pytest.importorskip("trl")

    data = Dataset.from_list([{"text": text} for text in TEXTS])
    peft = more.pop("peft_config", None)
    arguments = trl.SFTConfig(**options(folder, **more))
    return trl.SFTTrainer(
        dropped_out(), arguments, train_dataset=data, processing_class=tokenizer, callbacks=callbacks, peft_config=peft
    )


def grpo(folder: Any, tokenizer: Any, callbacks: list[TrainerCallback], **more: Any) -> Any:
    """TRL's GRPOTrainer."""
    trl: Any = pytest.importorskip("trl")

    data = Dataset.from_list([{"prompt": text} for text in TEXTS])
    arguments = trl.GRPOConfig(**options(folder, num_generations=2, max_completion_length=4, **more))
    reward: Any = lambda completions, **_: [float(len(text)) for text in completions]  # noqa: E731
    return trl.GRPOTrainer(
        dropped_out(), reward, arguments, train_dataset=data, processing_class=tokenizer, callbacks=callbacks
    )


def lora() -> Any:
    import peft

    return peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.3)


@pytest.mark.parametrize(
    ("made", "more"),
    [
        (plain, {}),
        (sft, {"bf16": True}),
        pytest.param(grpo, {}, marks=pytest.mark.slow),
        pytest.param(sft, {"peft_config": lora}, marks=pytest.mark.slow),
        pytest.param(grpo, {"bf16": True}, marks=pytest.mark.slow),
    ],
    ids=["transformers", "sft-bf16", "grpo", "sft-lora", "grpo-bf16"],
)
def test_the_trained_weights_are_those_without_it(made, more, tmp_path, tokenizer):
    trained = []
    for name, callbacks in (("without", []), ("with", [watch()])):
        chosen = {key: value() if callable(value) else value for key, value in more.items()}
        trainer = made(tmp_path / name, tokenizer, callbacks, **chosen)
        trainer.train()
        assert trainer.model.training
        trained.append(dict(trainer.model.named_parameters()))
    without, watched = trained
    assert all(torch.equal(without[name], watched[name]) for name in without)
    assert ip.open_study(tmp_path / "with" / "study").steps == [0, 2, 4]


def test_a_step_has_the_numbers_of_a_scan_of_its_weights(tmp_path, tokenizer):
    trainer = plain(tmp_path, tokenizer, [watch()])
    before = ip.scan(trainer.model, tokenizer, ROLLOUTS).means()
    trainer.train()
    found = ip.open_study(tmp_path / "study").means()
    for step, scan in ((0, before), (4, ip.scan(trainer.model, tokenizer, ROLLOUTS).means())):
        mine = found[found["step"] == step]
        np.testing.assert_allclose(mine[["mean", "low", "high"]], scan[["mean", "low", "high"]], rtol=1e-6)


def test_a_training_that_continues_from_a_checkpoint_continues_its_study(tmp_path, tokenizer):
    whole, folder = (
        plain(tmp_path / "whole", tokenizer, [watch()], save_strategy="steps", save_steps=2),
        tmp_path / "cut",
    )
    whole.train()
    shutil.copytree(tmp_path / "whole", folder)
    again = plain(folder, tokenizer, [watch()], save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    one, other = (ip.open_study(place / "study").means() for place in (tmp_path / "whole", folder))
    assert other["step"].unique().tolist() == [0, 2, 4]
    np.testing.assert_allclose(other["mean"], one["mean"], rtol=1e-5)


def test_problems_are_answered_once_before_training(tmp_path, tokenizer):
    problems = ["What is 4 + 5?", "What is 7 + 8?"]
    callback = ScanCallback(problems=problems, every=2, samples=2, max_new_tokens=4, readouts=["raw"])
    trainer = plain(tmp_path, tokenizer, [callback])
    expected = ip.generate(trainer.model, tokenizer, problems, samples=2, max_new_tokens=4)
    trainer.train()
    assert [one.response_ids for one in callback.rollouts] == [one.response_ids for one in expected]
    record = study.record(tmp_path / "study")
    assert (record["rollouts"], record["responses"]) == (4, "sampled before training")


def test_another_study_is_kept_unless_it_may_be_overwritten(tmp_path, tokenizer):
    plain(tmp_path, tokenizer, [watch()], max_steps=2).train()
    with pytest.raises(InputError, match="already holds a study"):
        plain(tmp_path, tokenizer, [watch()], max_steps=2).train()
    plain(tmp_path, tokenizer, [watch(overwrite=True)], max_steps=1).train()
    assert ip.open_study(tmp_path / "study").steps == [0, 1]
    other = watch(layers=[0], folder=tmp_path / "study")
    with pytest.raises(InputError, match="holds a study with different settings"):
        other.on_train_begin(*started(tmp_path, step=1), model=dropped_out(), processing_class=tokenizer)


def started(folder: Any, step: int = 0, first: bool = True, **more: Any) -> Any:
    """The arguments of a callback in a process when training begins."""
    from transformers import TrainerControl, TrainerState

    state = TrainerState(global_step=step, is_world_process_zero=first)
    return TrainingArguments(**options(folder, **more)), state, TrainerControl()


def test_only_the_first_process_scans(tmp_path, tokenizer):
    callback, (args, state, control) = watch(), started(tmp_path, first=False)
    for event in (callback.on_train_begin, callback.on_step_end, callback.on_train_end):
        event(args, state, control, model=dropped_out(), processing_class=tokenizer)
    assert not (tmp_path / "study").exists()


def test_divided_weights_and_a_missing_tokenizer_are_refused(tmp_path, tokenizer, monkeypatch):
    args, state, control = started(tmp_path)
    with pytest.raises(InputError, match=r"needs a tokenizer.*Pass tokenizer="):
        watch().on_train_begin(args, state, control, model=dropped_out(), processing_class=None)
    monkeypatch.setattr(args, "fsdp", ["full_shard"])
    with pytest.raises(InputError, match="can't scan a model whose weights are divided"):
        watch().on_train_begin(args, state, control, model=dropped_out(), processing_class=tokenizer)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "either texts"),
        ({"texts": ["x"], "problems": ["y"]}, "either texts"),
        ({"texts": ["x"], "samples": 2}, "samples has no effect without problems="),
        ({"texts": ["x"], "every": 0}, "every is 0; it must be"),
    ],
)
def test_options_that_cannot_be_used_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        ScanCallback(**given)
