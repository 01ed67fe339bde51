"""The recipe of the larger model: it stops at the share asked for, and what it saves can be loaded."""

from pathlib import Path

import make_large  # pyright: ignore[reportMissingImports]
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from internal_policy import bundle


@pytest.mark.parametrize(("shares", "steps"), [([0.1, 0.3], 4), ([0.0, 0.0], 5)])
def test_training_stops_at_the_share_or_after_its_steps(tmp_path, monkeypatch, shares, steps):
    measured = iter(shares)
    trained: list[int] = []
    monkeypatch.setattr(make_large, "SIZE", {"hidden_size": 32, "intermediate_size": 64})
    monkeypatch.setattr(make_large, "solved", lambda *_: next(measured))
    kept = make_large.encode
    monkeypatch.setattr(make_large, "encode", lambda *of: trained.append(1) or kept(*of))
    make_large.main(make_large.Large(tmp_path / "large", steps=5, every=2, batch_size=2, layers=2, problems=1))
    assert len(trained) == steps
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "large")
    assert model.config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(tmp_path / "large")) <= model.config.vocab_size


@pytest.mark.slow
def test_the_share_counts_correct_responses(tmp_path):
    folder = Path(bundle.DATA) / "models" / "demo-qwen3"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    one = make_large.Exercise("What is 2 + 3?", "5", "")
    wrong = make_large.Exercise("What is 2 + 3?", "no number", "")
    right, none = (make_large.solved(model, tokenizer, [exercise]) for exercise in (one, wrong))
    assert none == 0 < right
