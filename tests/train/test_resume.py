"""A folder is only continued with the same run."""

import pytest

from internal_policy.errors import InputError
from internal_policy.train import resume


@pytest.mark.parametrize("text", ["[]", "{}", '{"target": "3", "problems": 1}'])
def test_damaged_stages_of_a_run_get_a_one_sentence_error(text, tmp_path):
    (tmp_path / "stages.json").write_text(text)
    with pytest.raises(InputError, match=r"stages\.json is damaged"):
        resume.known(tmp_path / "stages.json", target=(int, type(None)), problems=int)


def test_a_run_whose_checkpoints_have_no_manifest_is_rejected(tmp_path):
    """Checkpoints of older versions don't record their files."""
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / resume.RUN).write_text('{"content": {}}')
    with pytest.raises(InputError, match=r"no complete checkpoint.*or add --force to begin anew"):
        resume.claim(tmp_path, {"content": {}}, True, print)
