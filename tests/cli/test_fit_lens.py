"""A lens on the command line: fitted, written, scanned with, sampled through, looked at; and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import jsonl, saved, tiny_model
from safetensors.torch import load_file, save_file

from internal_policy import files
from internal_policy.__main__ import main
from internal_policy.bundle import DATA
from internal_policy.cli import contents, fitting, prepared, question
from internal_policy.cli.scan import PRESENTATION, Scan
from internal_policy.look import summary, view
from internal_policy.models import loading
from internal_policy.models.checkpoint import Checkpoint, identity
from internal_policy.scans import records, store

PROBLEMS = [{"problem": f"What is {n} + 5?", "answer": str(n + 5)} for n in range(10)]
STREAM = "resid_pre,resid_post"
SHAPES = {"weight": (32, 32), "bias": (32,)}


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a tiny Qwen3 model, whose policy is not sure of itself, and a tokenizer."""
    model: Any = tiny_model("qwen3").float()
    model.get_output_embeddings().weight.data.mul_(0.1)
    return saved(model, tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture
def words(folder, tmp_path) -> list[str]:
    """Options that every command takes here."""
    path = tmp_path / "problems.jsonl"
    jsonl(path, *PROBLEMS)
    return ["--model", str(folder), "--problems", str(path), "--max-new-tokens", "12"]


@pytest.fixture
def asked(words) -> list[str]:
    return ["fit-lens", *words, "--samples", "4", "--steps", "40", "--batch-tokens", "64"]


@pytest.fixture(scope="module")
def fitted(folder, tmp_path_factory) -> Path:
    """A lens of the stream, in a file."""
    path = tmp_path_factory.mktemp("lens") / "lens.safetensors"
    tensors = {f"{n}.{kind}": torch.zeros(shape) for n in range(3) for kind, shape in SHAPES.items()}
    save_file(tensors | {"1.weight": torch.eye(32).flip(0)}, path)
    return path


@pytest.fixture(scope="module")
def jacobian(folder, tmp_path_factory) -> Path:
    """A Jacobian lens of the stream, in a file."""
    path = tmp_path_factory.mktemp("jacobian") / "jacobian.safetensors"
    draw = torch.Generator().manual_seed(0)
    points = ("0.resid_pre", "0.resid_post", "1.resid_post")
    save_file({f"{point}.jacobian": torch.randn(32, 32, generator=draw) for point in points}, path)
    return path


def entropies(folder: Path, readout: str) -> list[float]:
    layers = store.read(folder, "layers")
    return layers[layers["readout"] == readout]["entropy"].tolist()


def test_a_lens_is_fitted_scanned_with_and_shown(asked, words, here, capsys):
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert "KL from the model's own policy in nats" in printed
    assert "0.resid_pre" in printed
    assert "Measured on 8 responses" in printed
    assert "Lenses fitted on two halves of the texts differ by" in printed
    assert "doesn't tell" not in printed
    assert main(["show", "lens.safetensors"]) == 0
    assert capsys.readouterr().out.strip() == printed.partition("\nWrote lens.safetensors")[0].strip()
    assert f"--lens lens.safetensors --sites {STREAM}" in printed
    assert [path.name for path in here.iterdir()] == ["lens.safetensors"]
    scan = ["scan", *words, "--lens", "lens.safetensors", "--sites", STREAM]
    assert main([*scan, "--readout", "both", "--output", "mine"]) == 0
    assert "Also measured: norm, tuned." in capsys.readouterr().out
    assert store.record(here / "mine")["selection"]["readouts"] == ["raw", "norm", "tuned"]
    assert main(["show", "mine", "--readout", "tuned"]) == 0
    assert "through the tuned lens" in " ".join(capsys.readouterr().out.split())
    for figure in ("flow", "convergence", "readouts"):
        readout = [] if figure == "readouts" else ["--readout", "tuned"]
        assert main(["plot", "mine", figure, *readout, "-o", f"{figure}.html"]) == 0
    assert main(["report", "mine", "--readout", "tuned", "-o", "report.html"]) == 0
    assert "through the tuned lens" in (here / "report.html").read_text()


def test_json_and_the_file_describe_the_fit(asked, folder, capsys):
    assert main([*asked, "--json", "--output", "mine.safetensors", "--sites", "resid_post"]) == 0
    said = json.loads(capsys.readouterr().out)
    with Path("mine.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    about = json.loads(header["__metadata__"]["internal_policy"])
    assert main(["show", "mine.safetensors", "--json"]) == 0
    assert said == json.loads(capsys.readouterr().out)
    assert (said["missing"], said["unreadable"]) == ([], [])
    same = ("model", "identity", "d_model", "n_layers", "kl", "gain", "halves", "maps")
    assert {name: said[name] for name in same} == {name: about[name] for name in same}
    assert said["options"] == {name: about[name] for name in (*fitting.OPTIONS_OF["tuned"], "sites", "seed")}
    assert about["model"] == str(folder)
    assert about["identity"] == identity(Checkpoint(str(folder)))
    assert (about["d_model"], about["sites"], about["steps"]) == (32, "resid_post", 40)
    assert about["fitted_on"]["file"] == "problems.jsonl"
    assert (about["fitted_on"]["rollouts"], about["held_out"]["rollouts"]) == (32, 8)
    kl = pd.DataFrame(about["kl"]).pivot(index=["layer", "site"], columns="readout", values="mean")
    assert kl.index.tolist() == [(0, "resid_post"), (1, "resid_post")]
    assert (kl["tuned"] < kl["norm"]).all()
    assert load_file("mine.safetensors").keys() == {f"{n}.resid_post.{kind}" for n in (0, 1) for kind in SHAPES}


def test_another_lens_is_measured_beside_the_new_one(asked, fitted, capsys):
    command = [*asked, "--steps", "2", "--skip-halves", "--json"]
    assert main([*command, "--against", f"old={fitted}"]) == 0
    said = json.loads(capsys.readouterr().out)
    kl = pd.DataFrame(said["kl"]).pivot(index=["layer", "site"], columns="readout", values="mean")
    assert kl.columns.tolist() == ["norm", "old", "raw", "tuned"]
    assert kl["old"].loc[0, "resid_pre"] == pytest.approx(kl["norm"].loc[0, "resid_pre"])  # its translator is 0
    assert kl["old"].loc[0, "resid_post"] != pytest.approx(kl["norm"].loc[0, "resid_post"])
    assert said["halves"] == []
    assert main([*command, "--force", "--against", str(fitted)]) == 2
    assert (
        "The lens of --against is called 'tuned', like the new one. Use --against NAME=FILE." in capsys.readouterr().err
    )


def test_all_sites_are_fitted_and_scanned(asked, words, here):
    assert main([*asked, "--sites", "all", "--steps", "2"]) == 0
    assert len(load_file("lens.safetensors")) == 2 * 18
    assert main(["scan", *words, "--lens", "lens.safetensors", "--output", "mine"]) == 0
    assert len(entropies(here / "mine", "tuned")) == 10 * (3 * 7 + 1)


def test_the_same_seed_writes_the_same_file(asked):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main([*asked, "--steps", "3", "--seed", seed, "--output", f"{name}.safetensors"]) == 0
    one, same, other = (Path(f"{name}.safetensors").read_bytes() for name in "abc")
    assert one == same
    assert one != other


def test_given_responses_are_fitted_on(asked, words, folder, capsys):
    assert main(["generate", *words, "--output", "r.jsonl"]) == 0
    capsys.readouterr()
    given = ["fit-lens", "--model", str(folder), "--rollouts", "r.jsonl", "--steps", "2", "--json"]
    assert main(given) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fitted_on"]["file"] == "r.jsonl"
    assert said["fitted_on"]["rollouts"] + said["held_out"]["rollouts"] == len(PROBLEMS)


def test_an_interrupted_fit_writes_nothing_and_samples_nothing_twice(asked, here, capsys, monkeypatch):
    from internal_policy.lenses import fit
    from internal_policy.scans import sampling

    assert main([*asked, "--output", "whole.safetensors"]) == 0
    capsys.readouterr()
    states, sampled, batches = fit.states, sampling.batch, []

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "states", interrupted)
    monkeypatch.setattr(sampling, "batch", lambda *given: (batches.append(given[4]), sampled(*given))[1])
    assert main([*asked, "--output", "mine.safetensors"]) == 130
    assert "Continue with: internal-policy fit-lens" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["whole.safetensors"]
    monkeypatch.setattr(fit, "states", states)
    assert main([*asked, "--output", "mine.safetensors"]) == 0
    assert batches == [0, 32]
    assert (here / "mine.safetensors").read_bytes() == (here / "whole.safetensors").read_bytes()
    assert not list((store.root() / "rollouts").iterdir())


BAD = {
    "output": (["--output", "lens.bin"], "Can't write lens.bin. Use a name that ends in .safetensors."),
    "folder": (
        ["--output", "nowhere/lens.safetensors"],
        "There is no folder nowhere. Create it, or choose another --output.",
    ),
    "both": (["--rollouts", "r.jsonl"], "Both --problems and --rollouts are given"),
    "sites": (["--sites", "resid_pre,attn"], "There is no site 'attn'"),
    "steps": (["--steps", "0"], "steps is 0; it must be above 0"),
    "held out": (["--held-out", "1"], "held-out is 1.0; it must be above 0 and below 1"),
    "samples": (["--samples", "0"], "samples is 0; it must be 1 or more"),
    "one problem": (["--limit", "1"], "Give 2 or more problems"),
    "nothing to fit": (["--sites", "resid_post", "--model", "ONE LAYER"], "There is no hook point to fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_fit_is_refused_in_one_sentence(case, asked, here, capsys, tmp_path, tokenizer):
    words, sentence = BAD[case]
    if "ONE LAYER" in words:
        saved(tiny_model("qwen3", num_hidden_layers=1, layer_types=["full_attention"]), tokenizer, tmp_path / "small")
        words = [str(tmp_path / "small") if word == "ONE LAYER" else word for word in words]
    assert main([*asked, *words]) == 2
    printed = capsys.readouterr().err
    _, _, error = printed.partition("error: ")  # how the first prompt was read may stand before it
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not list(here.iterdir())


def test_an_existing_file_is_not_overwritten(asked, here, capsys):
    (here / "lens.safetensors").write_text("mine")
    assert main(asked) == 2
    assert (
        "lens.safetensors already exists. Choose another --output, or add --force to replace it."
        in capsys.readouterr().err
    )
    assert (here / "lens.safetensors").read_text() == "mine"


# scan --lens


def test_a_lens_is_part_of_the_question(words, fitted, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    save_file({**load_file(fitted), "2.bias": torch.ones(32)}, other)
    asked, found = ["scan", *words, "--sites", STREAM, "--dry-run", "--json"], []
    for lens in ([], ["--lens", str(fitted)], ["--lens", str(other)]):
        assert main([*asked, *lens]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert len({one["scan"] for one in found}) == 3
    assert [one["readouts"] for one in found] == [["raw", "norm"], ["raw", "norm", "tuned"], ["raw", "norm", "tuned"]]


def test_options_that_came_later_are_no_part_of_the_question_at_their_defaults():
    earlier = json.loads((DATA / "scans" / "demo-qwen3" / "scan.json").read_text())
    path = str(DATA / "problems" / "heldout.jsonl")
    asked = Scan(problems=path, limit=20, readout="both")
    unused = {*PRESENTATION, "engine"}
    found = question.of(asked, unused, [path, asked.chat_template])
    assert found.keys() == earlier["asked"].keys()


def test_one_tuned_lens_is_recorded_as_in_earlier_scans(words, fitted, here):
    lens = {"lens": str(fitted), "content": {str(fitted): files.fingerprint(fitted)}}
    inputs = prepared.prepare(Scan(model=words[1]), set(), [], lenses=[str(fitted)])
    assert {**inputs.question, **lens} == inputs.question
    assert records.lenses(inputs.question) == {"tuned": str(fitted)}


def test_each_lens_of_a_scan_is_recorded_with_its_readout(words, fitted, jacobian, here):
    given = ["mine=" + str(fitted), str(jacobian)]
    inputs = prepared.prepare(Scan(model=words[1]), set(), [], lenses=given)
    assert inputs.question["lens"] == [["mine", str(fitted)], ["jacobian", str(jacobian)]]
    assert inputs.question["content"].keys() == {str(fitted), str(jacobian)}
    assert records.lenses(inputs.question) == {"mine": str(fitted), "jacobian": str(jacobian)}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "--dry-run"])
def test_a_lens_without_the_translators_that_a_scan_takes_is_refused_before_work(
    words, fitted, dry, here, capsys, monkeypatch
):
    monkeypatch.setattr(loading, "load_model", None)
    assert main(["scan", *words, "--lens", str(fitted), *dry]) == 2
    printed = capsys.readouterr().err
    assert "not fitted at 0.attn_out, only at 3 hook points at resid_pre, resid_post. Read only those" in printed
    assert len(printed.strip().splitlines()) == 1
    assert not store.root().exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "--dry-run"])
@pytest.mark.parametrize("name", ["lens.pt", "nowhere.safetensors", "wide.safetensors"])
def test_a_lens_that_cannot_be_read_is_refused_before_work(words, name, dry, here, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    save_file({"0.weight": torch.zeros(64, 64)}, here / "wide.safetensors")
    assert main(["scan", *words, "--sites", STREAM, "--lens", name, *dry]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert name in printed
    assert len(printed.strip().splitlines()) == 1
    assert not store.root().exists()


def test_a_lens_of_another_model_is_refused_unless_it_is_asked_for(asked, words, folder, here, tmp_path, capsys):
    assert main([*asked, "--steps", "1"]) == 0
    copy = shutil.copytree(folder, tmp_path / "copy")
    tiny_model("qwen3").float().save_pretrained(copy)
    scan = ["scan", *words, "--sites", STREAM, "--lens", "lens.safetensors"]
    capsys.readouterr()
    assert main(scan) == 0
    assert "lens.safetensors" not in capsys.readouterr().err
    for command in (scan, ["generate", *words, "--at", "0.resid_post", "--lens", "lens.safetensors"]):
        assert main([*command, "--model", str(copy)]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"error: The lens lens.safetensors was fitted to another model, {folder} (sha256 ")
        assert len(printed.strip().splitlines()) == 1
        assert main([*command, "--model", str(copy), "--lens-of-another-model", "-o", f"{command[0]}.parquet"]) == 0
        assert "lens.safetensors" not in capsys.readouterr().err
    told = summary.provenance(view.default(Path("scan.parquet")))["lens"]
    assert told == f"tuned: lens.safetensors (fitted to another model, {folder})"


def test_a_lens_that_does_not_name_its_model_is_used_with_a_note(words, fitted, here, capsys):
    assert main(["scan", *words, "--sites", STREAM, "--lens", str(fitted)]) == 0
    said = "doesn't record which model it was fitted to, so only its shapes were checked."
    assert capsys.readouterr().err.count(said) == 1


def test_a_permission_for_no_lens_is_refused(words, here, capsys):
    assert main(["scan", *words, "--lens-of-another-model"]) == 2
    assert "has no effect without --lens. Leave it out." in capsys.readouterr().err


def test_a_scan_takes_several_lenses(words, fitted, jacobian, here, capsys):
    given = ["--lens", str(fitted), "--lens", str(jacobian), "--lens", f"again={jacobian}"]
    assert main(["scan", *words, "--sites", STREAM, *given, "--output", "s", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["selection"]["readouts"] == ["raw", "norm", "tuned", "jacobian", "again"]
    own, again = entropies(here / "s", "jacobian"), entropies(here / "s", "again")
    assert own == again
    assert len({tuple(entropies(here / "s", name)) for name in ("norm", "tuned", "jacobian")}) == 3
    assert main(["scan", *words, "--sites", STREAM, "--readout", "raw", "--lens", str(jacobian), "--json"]) == 0
    assert entropies(Path(json.loads(capsys.readouterr().out)["scan"]), "jacobian") == own
    assert main(["ls", "--json"]) == 0
    assert [row["readouts"] for row in json.loads(capsys.readouterr().out) if not row["bundled"]] == [
        ["raw", "jacobian"]
    ]
    assert main(["show", "s", "--readout", "again"]) == 0
    assert "through the again lens" in " ".join(capsys.readouterr().out.split())
    assert main(["report", "s", "--readout", "jacobian", "-o", "report.html"]) == 0
    readouts = "through the tuned lens, through the Jacobian lens and through the again lens."
    assert readouts in Path("report.html").read_text()
    assert contents._readouts({"readout": "both", "lens": [["a", "x"], ["b", "y"]]}) == ["raw", "norm", "a", "b"]


REFUSED = {
    "twice": (["{t}", "{t}"], "are both called 'tuned'. Give one of them a name of its own, such as --lens other="),
    "same name": (["a={t}", "a={j}"], "are both called 'a'. Give one of them a name"),
    "norm": (["norm={t}"], "a tuned lens can't be called 'norm'. Choose another name."),
    "another kind": (["tuned={j}"], "a jacobian lens can't be called 'tuned'. Choose another name."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_name_of_a_readout_that_is_taken_is_refused_before_work(
    case, words, fitted, jacobian, here, capsys, monkeypatch
):
    monkeypatch.setattr(loading, "load_model", None)
    given, sentence = REFUSED[case]
    lenses = [word for one in given for word in ("--lens", one.format(t=fitted, j=jacobian))]
    assert main(["scan", *words, "--sites", STREAM, *lenses]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert len(printed.strip().splitlines()) == 1
    assert not store.root().exists()


# generate and evaluate --lens


def test_responses_are_sampled_through_a_lens(words, fitted):
    for name, lens in (("raw", []), ("norm", ["--readout", "norm"]), ("lens", ["--lens", str(fitted)])):
        command = ["generate", *words, "--at", "0.resid_post", "--output", f"{name}.jsonl"]
        assert main([*command, *lens]) == 0
    assert len({Path(f"{name}.jsonl").read_text() for name in ("raw", "norm", "lens")}) == 3


def test_an_evaluation_through_a_lens_is_named_so(words, fitted, folder, capsys):
    asked = ["evaluate", *words, "--samples", "2", "--limit", "2", "--at", "0.resid_post", "--json"]
    found = []
    for lens in ([], ["--lens", str(fitted)]):
        assert main([*asked, *lens]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [one["label"] for one in found] == [f"{folder.name}@0.resid_post", f"{folder.name}@0.resid_post, tuned"]
    assert found[0]["output"] != found[1]["output"]


@pytest.mark.parametrize("command", ["generate", "evaluate"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--lens reads a hook point, but --at is final, the model's own policy. Add --at, such as 5.resid_post."),
        (["--at", "1.resid_post", "--readout", "norm"], "Both --lens and --readout norm are given. Use one of them."),
        (["--at", "1.mlp_out"], "not fitted at 1.mlp_out"),
    ],
)
def test_a_lens_that_is_not_used_is_refused(command, options, sentence, words, fitted, here, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    assert main([command, *words, "--lens", str(fitted), *options]) == 2
    printed = capsys.readouterr().err
    _, _, error = printed.partition("error: ")  # how the first prompt was read may stand before it
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not list(here.iterdir())
    assert not store.root().exists()
