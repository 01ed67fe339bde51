"""Lenses go up to the Hub with their card, and are found there by their addresses."""

import json
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from safetensors.torch import save_file

from internal_policy.__main__ import main
from internal_policy.cli import lens_files
from internal_policy.errors import InputError
from internal_policy.lenses import source

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # of huggingface_hub's uploads
NAME = "hf://org/lens"


@pytest.fixture
def lens(here: Path) -> Path:
    """A lens in the file lens.safetensors."""
    save_file({"0.resid_post.jacobian": 2 * torch.eye(4)}, "lens.safetensors")
    return here / "lens.safetensors"


@pytest.fixture
def commit(hub: Hub, lens: Path) -> str:
    """The commit of a Hub that has the lens beside other files."""
    return hub.put("org/lens", lens.parent, **{"README.md": b"a card", "run.py": b"print()"})


def test_a_lens_is_uploaded_with_its_card_and_found_again(hub, lens, capsys):
    assert main(["push", "lens.safetensors", "org/lens", "--license", "mit", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["address"] == f"{NAME}@{told['commit']}"
    files = hub.repositories["org/lens"].commits[told["commit"]]
    assert files["lens.safetensors"] == lens.read_bytes()
    assert files["README.md"].startswith(b"---\nlibrary_name: internal-policy\nlicense: mit\n")
    assert main(["show", told["address"]]) == 0
    assert "Jacobian lens of an unknown model" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "/lens.safetensors", "@main", "/lens.safetensors@main"])
def test_a_lens_on_the_hub_is_named_with_or_without_its_file(name, hub, lens, commit):
    found = source.find(NAME + name)
    assert (found.path.read_bytes(), found.commit) == (lens.read_bytes(), commit)
    assert not any("run.py" in line for line in hub.asked)


def test_a_scan_knows_the_commit_of_its_lens(commit):
    (found,) = lens_files.resolve([f"mine={NAME}"])
    assert (found.name, found.content) == ("mine", {"revision": commit})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://datasets/org/lens", "isn't the address of a lens"),
        ("hf://datasets/lens", "isn't the address of a lens"),
        (f"{NAME}/../../lens.safetensors", "isn't the address of a lens"),
        (f"{NAME}@a/../../../b", "isn't the address of a lens"),
        (f"{NAME}/run.py", "isn't the path of a lens in org/lens"),
        (f"{NAME}/other.safetensors", "hf://org/lens/other.safetensors doesn't exist. Look it up at"),
        ("hf://org/none", "Can't find the model org/none on the Hub. Check the name"),
    ],
)
def test_what_is_not_a_lens_on_the_hub_is_refused(name, said, commit):
    with pytest.raises(InputError) as error:
        source.find(name)
    assert said in str(error.value)


def test_one_of_several_lenses_has_to_be_named(hub, commit):
    hub.repository("org/lens").commit({"a.safetensors": b"", "b/c.pt": b""})
    with pytest.raises(
        InputError, match=r"has 2 lenses: a\.safetensors, b/c\.pt\. Name one, such as hf://org/lens/a\.s"
    ):
        source.find(NAME)
    hub.repository("org/lens").commit({"README.md": b""})
    with pytest.raises(InputError, match=r"has no lens\. Name a repository with a"):
        source.find(NAME)


def test_a_lens_larger_than_the_disk_is_not_downloaded(hub, commit):
    hub.sizes["lens.safetensors"] = 2**60
    with pytest.raises(InputError, match="GB to download, but the disk of"):
        source.find(NAME)
    assert not any(line.startswith("GET") and "lens.safetensors" in line for line in hub.asked)


def test_a_readout_of_a_lens_is_refused(lens, capsys):
    assert main(["push", "lens.safetensors", "org/lens", "--readout", "norm", "--dry-run", "card"]) == 2
    assert "--readout only applies to scans" in capsys.readouterr().err


def test_the_address_of_a_revision_with_a_slash_is_pinned(hub, commit):
    hub.repository("org/lens").branches["refs/pr/3"] = commit
    assert source.find(f"{NAME}/lens.safetensors@refs/pr/3").commit == commit
