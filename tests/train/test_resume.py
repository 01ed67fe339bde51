"""A folder is only continued with the same run."""

import pytest

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.scans.claims import Occupied
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


def test_a_folder_with_nothing_but_the_settings_of_a_failed_run_can_be_used_again(tmp_path):
    (tmp_path / resume.RUN).write_text('{"content": {}, "seed": 1}')
    (tmp_path / resume.CONFIG).touch()
    assert resume.claim(tmp_path, {"content": {}, "seed": 2}, False, print) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["rollouts.parquet", "notes.txt"])
def test_a_folder_with_settings_and_anything_else_is_kept(tmp_path, name):
    (tmp_path / resume.RUN).write_text('{"content": {}, "seed": 1}')
    (tmp_path / name).touch()
    with pytest.raises(Occupied, match="a different --seed"):
        resume.claim(tmp_path, {"content": {}, "seed": 2}, False, print)


def test_settings_of_a_run_that_is_starting_are_kept(tmp_path):
    (tmp_path / resume.RUN).write_text('{"content": {}, "seed": 1}')
    with files.held(tmp_path), pytest.raises(Occupied, match="a different --seed"):
        resume.claim(tmp_path, {"content": {}, "seed": 2}, False, print)


@pytest.mark.parametrize("result", [None, "rollouts.parquet"])
def test_a_refused_run_leaves_no_folder_without_a_result(tmp_path, result):
    run = tmp_path / "run"

    def fails():
        with resume.forgetting(run), files.held(run):
            for name in filter(None, (resume.RUN, resume.CONFIG, result)):
                (run / name).touch()
            raise InputError("refused")

    with pytest.raises(InputError, match="refused"):
        fails()
    assert run.exists() == (result is not None)
