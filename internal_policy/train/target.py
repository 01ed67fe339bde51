"""Choose the layer to train first by how well its gradient agrees with GRPO's before training."""

from typing import Any

from internal_policy import files
from internal_policy.errors import InputError, counted
from internal_policy.look import alignment
from internal_policy.train.align import align
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.resume import known
from internal_policy.train.run import Bar, Setup, responses

TARGET = "target.json"
"""Name in the folder of a run: the layer, and the sentence that says why."""


def aligned(setup: Setup, config: BuPOConfig, site: str, bar: Bar) -> dict[str, Any]:
    """The `target`, a layer or None, and the `reason` in a sentence; decided once and kept in a file.

    Raises InputError for rewards other than that of the box, for too few problems with spread, and if the file is
    damaged.
    """
    path = setup.folder / TARGET
    if path.exists():
        return known(path, target=(int, type(None)), reason=str)
    if [*config.rewards] != ["box"]:
        raise InputError("--target align marks responses by their boxes. Leave out --reward, or choose a --layer.")
    rollouts = responses(
        setup,
        alignment.PROMPTS,
        config.max_completion_length or 0,
        bar,
        config.num_generations or 8,
        temperature=config.temperature,
        seed=config.seed,
        batch_size=config.per_device_train_batch_size,
    )
    found = align(setup.model, rollouts, sites=[site], readouts=[config.readout], temperature=config.temperature)
    best, sentences = found.best(site, config.readout), found.sentences()
    reason = f"{sentences[0]} (From {counted(len(rollouts), 'response')}.)"
    files.write_json(path, {"target": best and best.layer, "reason": reason}, once=True)
    return known(path, target=(int, type(None)), reason=str)
