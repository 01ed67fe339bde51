"""`internal-policy verify`: damaged scans are named, and repaired to the last byte or refused with the reason."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import SUMS, jsonl, slow
from safetensors.torch import save_file

from internal_policy import bundle, files
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.lenses import file as lens_file
from internal_policy.lenses.lens import FittedLens, Translator
from internal_policy.models.hooks import HookPoint
from internal_policy.scans import digests, records, sampling, store

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def originals(folder, tmp_path_factory) -> Path:
    """A folder with a small scan of two parts for each source of responses, and the files that they were made of."""
    here = tmp_path_factory.mktemp("originals")
    problems, rollouts, lens = here / "problems.jsonl", here / "rollouts.jsonl", here / "lens.safetensors"
    jsonl(problems, *SUMS[:3])
    jsonl(rollouts, *({"prompt": f"{n} + 5?", "response": f"It is {n + 5}."} for n in range(3)))
    save_file({f"{n}.{kind}": torch.zeros(shape) for n in range(3) for kind, shape in SHAPES.items()}, lens)
    sources = {
        "sampled": ["--problems", str(problems), "--max-new-tokens", "4"],
        "given": ["--rollouts", str(rollouts)],
        "texts": ["--text", "One and two.", "--text", "Three and four.", "--text", "Five."],
        "lens": ["--rollouts", str(rollouts), "--lens", str(lens), "--sites", "resid_pre,resid_post"],
        "controls": ["--text", "One.", "--text", "Two.", "--text", "3.", "--controls", "--layers", "0,2"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERNAL_POLICY_CACHE", str(here / "cache"))
        for name, words in sources.items():
            words = ["scan", "--model", str(folder), "--batch-size", "2", *words]
            assert main([*words, "--output", str(here / name)]) == 0
    return here


SHAPES = {"weight": (32, 32), "bias": (32,)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damage(folder: Path, *names: str) -> None:
    """Flip a bit in the middle of each file."""
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)


def copied(original: Path) -> Path:
    return Path(shutil.copytree(original, Path("mine")))


def test_a_whole_scan_is_one_line(originals, capsys):
    assert main(["verify", str(originals / "given")]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{originals / 'given'}: 11 files, ")
    assert printed.out.endswith(" kB, 3 rollouts, all as they were written.\n")
    assert printed.err == ""


def test_damaged_files_are_listed_with_the_remedy(originals, capsys):
    mine = copied(originals / "given")
    (mine / "layers-00001.parquet").unlink()
    damage(mine, "scan.json")
    assert main(["verify", "mine"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"layers-00001\.parquet +missing", printed)
    assert "scan.json" in printed
    assert printed.endswith("Repair it with `internal-policy verify mine --repair`.\n")


def test_several_scans_are_checked_and_printed_as_json(originals, capsys):
    mine = copied(originals / "texts")
    damage(mine, "layers-00000.parquet")
    assert main(["verify", str(originals / "given"), "mine", "--json"]) == 1
    whole, damaged = json.loads(capsys.readouterr().out)
    assert (whole["damaged"], whole["remedy"], whole["repaired"]) == ([], None, None)
    fault = {"file": "layers-00000.parquet", "problem": "altered", "detail": "its SHA-256 differs", "copy_of": None}
    assert damaged["damaged"] == [fault]
    assert damaged["bytes"] == sum(map(len, contents(mine).values()))


def test_all_checks_the_cache_and_the_package(originals, capsys):
    shutil.copytree(originals / "given", store.root() / "model" / "3fa900000000")
    damage(store.root() / "model" / "3fa900000000", "asked.json")
    assert main(["verify", "--all"]) == 1
    printed = capsys.readouterr().out
    assert "Repair it with `internal-policy verify 3fa900000000 --repair`." in printed
    assert "demo-qwen3-ablation: 6 files, " in printed


@pytest.mark.parametrize("source", ["lens", "sampled", "controls", *slow("given", "texts")])
def test_a_repaired_scan_equals_the_original(source, originals, capsys):
    mine = copied(originals / source)
    damage(mine, "policies-00000.parquet", "vocabulary.parquet", "asked.json", "part-00001.json")
    (mine / "layers-00001.parquet").write_bytes(b"")
    shutil.copy(mine / "layers-00000.parquet", mine / "layers-00002.parquet")
    assert main(["verify", "mine", "--repair"]) == 0
    assert contents(mine) == contents(originals / source)
    assert "3 rollouts, all as they were written." in capsys.readouterr().out


@pytest.mark.parametrize("source", ["sampled", "given", "texts"])
def test_damaged_responses_are_sampled_or_read_again(source, originals):
    mine = copied(originals / source)
    damage(mine, "rollouts-00001.parquet")
    (mine / "rollouts-00000.parquet").unlink()
    assert main(["verify", "mine", "--repair"]) == 0
    assert contents(mine) == contents(originals / source)


@pytest.mark.parametrize("source", ["sampled", *slow("given", "lens")])
def test_a_damaged_record_is_written_again_from_the_parts(source, originals):
    mine = copied(originals / source)
    damage(mine, "scan.json", "policies-00001.parquet")
    assert main(["verify", "mine", "--repair"]) == 0
    before, now = (dict(records.read(folder / "scan.json")) for folder in (originals / source, mine))
    changing = ("created", "command")
    assert {k: v for k, v in before.items() if k not in changing} == {k: v for k, v in now.items() if k not in changing}
    assert now["command"][:3] == ["internal-policy", "scan", "--model"]
    unchanged = {name: content for name, content in contents(mine).items() if name != "scan.json"}
    assert unchanged.items() <= contents(originals / source).items()


def test_damaged_notes_and_settings_are_repaired_without_the_model(originals, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    mine = copied(originals / "given")
    damage(mine, "part-00000.json")
    (mine / "asked.json").unlink()
    assert main(["verify", "mine", "--repair"]) == 0
    assert contents(mine) == contents(originals / "given")


def test_an_interrupted_repair_goes_on(originals, monkeypatch):
    from internal_policy.scans import scan

    mine = copied(originals / "texts")
    damage(mine, "policies-00000.parquet", "layers-00001.parquet")
    measure = scan.Scanner.measured

    def interrupted(scanner, rollouts, first, *others):
        if first:
            raise KeyboardInterrupt
        return measure(scanner, rollouts, first, *others)

    with monkeypatch.context() as patch:
        patch.setattr(scan.Scanner, "measured", interrupted)
        assert main(["verify", "mine", "--repair"]) == 130
    assert main(["verify", "mine", "--repair"]) == 0
    assert contents(mine) == contents(originals / "texts")


def test_responses_that_differ_when_sampled_again_are_named(originals, capsys, monkeypatch):
    sampled = sampling.batch
    monkeypatch.setattr(sampling, "batch", lambda *given: sampled(*given)[::-1])  # another machine, other samples
    mine = copied(originals / "sampled")
    damage(mine, "rollouts-00000.parquet")
    assert main(["verify", "mine", "--repair"]) == 0
    printed = capsys.readouterr().out
    assert "Not the same as before" in printed
    assert "rollouts-00000.parquet" in printed.partition("Not the same")[2]
    assert main(["verify", "mine"]) == 0


def test_given_responses_are_repaired_without_their_file(folder, capsys):
    jsonl(Path("r.jsonl"), {"prompt": "1 + 1?", "response": "2"})
    assert main(["scan", "--model", str(folder), "--rollouts", "r.jsonl", "-o", "mine"]) == 0
    Path("r.jsonl").unlink()
    damage(Path("mine"), "layers-00000.parquet")
    assert main(["verify", "mine", "--repair"]) == 0
    before = contents(Path("mine"))
    damage(Path("mine"), "rollouts-00000.parquet")
    capsys.readouterr()
    assert main(["verify", "mine", "--repair"]) == 2
    assert "because there is no file r.jsonl, which it was measured with" in capsys.readouterr().err
    jsonl(Path("r.jsonl"), {"prompt": "1 + 1?", "response": "3"})
    assert main(["verify", "mine", "--repair"]) == 2
    assert "because r.jsonl has changed since" in capsys.readouterr().err
    jsonl(Path("r.jsonl"), {"prompt": "1 + 1?", "response": "2"})
    assert main(["verify", "mine", "--repair"]) == 0
    assert contents(Path("mine")) == before


def test_a_model_or_lens_that_changed_or_is_gone_is_named(originals, folder, tmp_path, capsys):
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    lens = Path(shutil.copy(originals / "lens.safetensors", tmp_path / "lens.safetensors"))
    words = ["scan", "--model", str(model), "--text", "One.", "--lens", str(lens), "--sites", "resid_pre,resid_post"]
    assert main([*words, "-o", "mine"]) == 0
    damage(Path("mine"), "layers-00000.parquet")
    before = contents(Path("mine"))
    capsys.readouterr()
    save_file({f"{n}.{kind}": torch.ones(shape) for n in range(3) for kind, shape in SHAPES.items()}, lens)
    assert main(["verify", "mine", "--repair"]) == 2
    assert f"because the lens {lens} has changed since" in capsys.readouterr().err
    lens.unlink()
    assert main(["verify", "mine", "--repair"]) == 2
    assert "because what it was measured with isn't there" in capsys.readouterr().err
    (model / "generation_config.json").write_text("{}")
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1] + b"x")
    assert main(["verify", "mine", "--repair"]) == 2
    assert "isn't there" in capsys.readouterr().err
    shutil.copy(originals / "lens.safetensors", lens)
    assert main(["verify", "mine", "--repair"]) == 2
    assert f"because the model {model} has changed since" in capsys.readouterr().err
    shutil.rmtree(model)
    assert main(["verify", "mine", "--repair"]) == 2
    assert "because what it was measured with isn't there" in capsys.readouterr().err
    assert contents(Path("mine")) == before


def test_a_scan_without_readable_settings_is_not_repaired(originals, capsys):
    mine = copied(originals / "texts")
    damage(mine, "scan.json", "asked.json")
    assert main(["verify", "mine", "--repair"]) == 2
    assert "because the settings in it can't be read. Remove it, and scan again." in capsys.readouterr().err


def test_a_part_of_another_scan_stays_until_it_is_moved(originals, capsys):
    mine = copied(originals / "texts")
    shutil.copy(originals / "given" / "layers-00001.parquet", mine / "layers-00002.parquet")
    assert main(["verify", "mine", "--repair"]) == 1
    assert capsys.readouterr().out.endswith("Move or remove layers-00002.parquet.\n")


@pytest.mark.parametrize(("kind", "said"), [("scan", "comes with the package"), ("ablation", "only works for scans")])
def test_what_cannot_be_repaired_is_checked_and_says_why(kind, said, tmp_path, capsys, monkeypatch):
    shutil.copytree(bundle.DATA / "scans" / "demo-qwen3", tmp_path / "data" / "scans" / "demo-qwen3")
    ablation = shutil.copytree(bundle.ablations()[0], tmp_path / "ablation")
    monkeypatch.setattr(bundle, "DATA", tmp_path / "data")
    name, file = {"scan": ("demo-qwen3", "layers-00001"), "ablation": (str(ablation), "effects-00001")}[kind]
    folder = tmp_path / "data" / "scans" / "demo-qwen3" if kind == "scan" else Path(ablation)
    (folder / f"{file}.parquet").unlink()
    assert main(["verify", name]) == 1
    assert f"{file}.parquet" in capsys.readouterr().out
    assert main(["verify", name, "--repair"]) == 2
    assert said in capsys.readouterr().err


def test_a_scan_that_is_being_written_is_not_checked(originals, capsys):
    mine = copied(originals / "texts")
    with files.held(mine):
        assert main(["verify", "mine"]) == 2
    assert "Wait until it has finished." in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [([], "No scan is named"), (["nothing"], "There is no scan, ablation,")])
def test_wrong_usage_is_one_sentence(words, said, capsys):
    assert main(["verify", *words]) == 2
    assert said in capsys.readouterr().err


def small(kind: str, folder: Path) -> tuple[str, list[str]]:
    """A finished alignment, evaluation or run with the command that wrote it, and its files."""
    model = ["--model", str(folder), "--output", "mine"]
    if kind == "alignment":
        shutil.copytree(bundle.alignments()[0], "mine")
        return "align", ["alignment.json", "alignment.parquet", "rollouts.parquet", digests.DIGESTS]
    if kind == "run":
        shutil.copytree(bundle.runs()[0], "mine")
        return "train", ["metrics.parquet", "dynamics.parquet", digests.DIGESTS]
    jsonl(Path("problems.jsonl"), *SUMS[:2])
    assert main(["evaluate", *model, "--problems", "problems.jsonl", "--samples", "2", "--max-new-tokens", "4"]) == 0
    return "evaluate", ["evaluation.json", "rollouts.parquet", "pass_at_k.parquet", digests.DIGESTS]


@pytest.mark.parametrize("kind", ["alignment", "run", "evaluation"])
def test_every_damaged_file_of_other_results_is_named(kind, folder, capsys):
    command, names = small(kind, folder)
    assert main(["verify", "mine", "--json"]) == 0
    capsys.readouterr()
    for name in names:
        content = (Path("mine") / name).read_bytes()
        damage(Path("mine"), name)
        assert main(["verify", "mine", "--json"]) == 1
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["kind"], [fault["file"] for fault in row["damaged"]]) == (kind, [name])
        assert row["remedy"] == f"Remove it with `internal-policy rm`, and run `internal-policy {command}` again."
        (Path("mine") / name).write_bytes(content)
    assert main(["verify", "mine"]) == 0
    assert main(["verify", "mine", "--repair"]) == 0
    (Path("mine") / names[1]).unlink()
    assert main(["verify", "mine", "--repair"]) == 2
    assert "--repair only works for scans." in capsys.readouterr().err


def test_results_without_digests_are_refused_by_name_and_passed_over_among_all(capsys):
    shutil.copytree(bundle.runs()[0], store.root() / "runs" / "old")
    (store.root() / "runs" / "old" / digests.DIGESTS).unlink()
    assert main(["verify", "runs/old"]) == 2
    assert "an earlier version wrote it" in capsys.readouterr().err
    assert main(["verify", "--all", "--json"]) == 0
    printed = capsys.readouterr()
    assert "runs/old isn't checked" in printed.err
    assert [row["damaged"] for row in json.loads(printed.out)] == [[]] * 9


def test_digests_of_files_elsewhere_are_refused(tmp_path):
    for name in ("../x", "/etc/passwd", "model/../../x", "", "a\\b"):
        records.write(tmp_path / digests.DIGESTS, {"files": {name: {"bytes": 1, "sha256": "0" * 64}}})
        with pytest.raises(ValueError, match="isn't in its folder"):
            digests.known(tmp_path)


def test_a_repeated_evaluation_does_not_take_altered_responses_for_its_own(folder):
    small("evaluation", folder)
    path = Path("mine") / "rollouts.parquet"
    pq.write_table(pq.read_table(path), path, compression="none")
    small("evaluation", folder)
    assert main(["verify", "mine"]) == 1


def test_a_lens_with_another_number_is_refused_and_named(tmp_path, capsys):
    path = tmp_path / "lens.safetensors"
    translator = Translator(torch.eye(8), torch.zeros(8))
    lens_file.save(path, FittedLens({HookPoint(0, "resid_post"): translator}, 2, {"model": "tiny", "kl": [0.1]}))
    assert main(["verify", str(path)]) == 0
    assert "lens.safetensors: 1 file" in capsys.readouterr().out
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(path)]) == 1
    assert "fit it again" in capsys.readouterr().out
    with pytest.raises(InputError, match="was changed after it was written"):
        lens_file.read(path, 2, 8)
    save_file({"0.resid_post.jacobian": torch.eye(8)}, path)
    assert main(["verify", str(path)]) == 2
    assert "records no digest" in capsys.readouterr().err
