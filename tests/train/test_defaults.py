"""Options win over a file's fields, and those over defaults."""

from internal_policy.train import defaults


def test_several_processes_share_a_step(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    shape = defaults._shape(8, 2, {"num_generations": 4, "per_device_train_batch_size": 4})
    assert shape["steps_per_generation"] == 4
    assert shape["gradient_accumulation_steps"] == 2
