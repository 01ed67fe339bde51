"""`internal-policy show LENS`: for a lens with a card, one of another tool, and files that aren't lenses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from internal_policy.__main__ import main
from internal_policy.lenses import file
from internal_policy.lenses.lens import FittedLens, Jacobian
from internal_policy.models.hooks import HookPoint

pytestmark = pytest.mark.usefixtures("here")
POINTS = [(0, "resid_pre"), (0, "resid_post"), (1, "resid_post")]


@pytest.fixture
def lens(here) -> str:
    """A lens with a card, in a file."""
    ends = {"mean": 0.5, "low": 0.4, "high": 0.6}
    rows = [{"layer": layer, "site": site, **ends} for layer, site in POINTS]
    kl = [{**row, "readout": name} for name in ("raw", "norm", "jacobian") for row in rows]
    texts = {"file": "texts.jsonl", "sha256": "f00", "problems": 6, "rollouts": 12, "tokens": 1200}
    about = {
        "model": "tiny[/red]\x1b[2J",
        "identity": "x",
        "n_layers": 3,
        "fitted_on": texts,
        "held_out": {"rollouts": 3},
    }
    about |= {"kl": kl, "gain": rows, "halves": [{**row, "difference": 0.25} for row in rows], "skip": 16}
    about["held_out"] = {"rollouts": 3}
    at = {HookPoint(*point): Jacobian(torch.eye(8) * 2) for point in POINTS}
    file.save("lens.safetensors", FittedLens(at, 3, about))
    return "lens.safetensors"


def test_a_card_is_printed(lens, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["show", lens]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "Jacobian lens of tiny[/red]\\x1b[2J (3 layers, d_model 8) at 3 hook points."
    (row,) = [line.split() for line in printed.splitlines() if line.strip().startswith("1.resid_post")]
    assert row == ["1.resid_post", "0.500", "0.500", "0.500", "0.400", "to", "0.600", "0.500", "25%", "0%"]
    assert "Fitted on 12 responses (1,200 tokens) of 6 problems in texts.jsonl." in printed
    assert "Measured on 3 responses that it wasn't fitted on." in printed
    assert "closer to the model's own policy at all 3 hook points" in printed
    assert "doesn't tell" not in printed


def test_json_has_the_card_and_what_it_means(lens, capsys):
    assert main(["show", lens, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["lens"], said["kind"], said["d_model"], said["options"]) == (lens, "jacobian", 8, {"skip": 16})
    assert [row["scale"] for row in said["maps"]] == [2, 2, 2]
    assert len(said["kl"]) == 9
    assert said["missing"] == []


def test_a_card_is_written_as_markdown(lens, here, capsys):
    assert main(["show", lens, "-o", "README.md"]) == 0
    text = (here / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: internal-policy\n")
    assert "| 1.resid\\_post |".replace("\\", "") in text
    assert "--lens lens.safetensors --sites resid_pre,resid_post" in text
    assert "Wrote README.md." in capsys.readouterr().err
    assert main(["show", lens, "-o", "README.md"]) == 2
    assert "README.md already exists" in capsys.readouterr().err
    assert main(["show", lens, "-o", "README.txt"]) == 2
    assert "Can't write README.txt. Use a name that ends in .md." in capsys.readouterr().err


def test_a_lens_of_the_tuned_lens_library_says_what_is_missing(here, capsys):
    tensors = {f"{n}.weight": torch.zeros(8, 8) for n in range(3)} | {f"{n}.bias": torch.zeros(8) for n in range(3)}
    save_file(tensors, "theirs.safetensors")
    assert main(["show", "theirs.safetensors"]) == 0
    printed = capsys.readouterr().out
    assert "Tuned lens of an unknown model (d_model 8) at 3 hook points." in printed
    assert "The file doesn't tell the model, its weights, the texts it was fitted on, the held-out KL" in printed
    assert [line.split()[0] for line in printed.splitlines() if "%" in line][:3] == [
        "0.resid_pre",
        "0.resid_post",
        "1.resid_post",
    ]


def test_a_published_lens_tells_its_prompts(here, capsys):
    eye = torch.eye(8)
    value = {"J": {0: eye, 1: eye.flip(0)}, "n_prompts": 100, "source_layers": [0, 1], "d_model": 8}
    torch.save({**value, "provenance": {"corpus": "web text"}}, "published.pt")
    assert main(["show", "published.pt", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["lens"], said["kind"], said["fitted_on"]["problems"]) == ("published.pt", "jacobian", 100)
    assert said["options"] == {"n_prompts": 100, "format": "published", "provenance.corpus": "web text"}
    assert [row["off_identity"] for row in said["maps"]] == [0, 1]
    assert "Fitted on 100 problems." in said["sentences"]
    assert said["unreadable"] == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "doesn't exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("nonsense"), "Can't read x.safetensors as safetensors"),
        (lambda path: save_file({"model.norm.weight": torch.ones(8)}, path), "has the key 'model.norm.weight', but"),
        (lambda path: save_file({}, path), "contains no lens"),
        (lambda path: save_file({"0.weight": torch.tensor(1.0)}, path), "has 0.weight of shape ()"),
        (lambda path: save_file({"0.jacobian": torch.zeros(4, 8)}, path), "has 0.jacobian of shape (4, 8)"),
        (
            lambda path: save_file({"0.jacobian": torch.eye(4)}, path, {"internal_policy": "[" * 100_000}),
            "Can't read x.safetensors as safetensors",
        ),
    ],
)
def test_a_file_without_a_lens_is_rejected_in_a_sentence(make, said, here, capsys):
    make(Path("x.safetensors"))
    assert main(["show", "x.safetensors"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert said in printed
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["show", "lens.safetensors", "--readout", "norm"],
            "--readout only applies to scans, but lens.safetensors",
        ),
        (["show", "demo-qwen3", "-o", "card.md"], "--output only applies to lenses, but demo-qwen3 is a scan."),
    ],
)
def test_options_of_a_lens_and_of_a_scan_are_not_mixed(words, said, lens, here, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not (here / "card.md").exists()
