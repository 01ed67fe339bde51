"""Jacobian lenses in their published format: read, copied, written, fetched from the hub, and refused."""

import json
import pickle
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file

from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.lenses import file, published, source
from internal_policy.lenses.lens import FittedLens, Jacobian, Translator
from internal_policy.models.hooks import HookPoint
from internal_policy.models.policy import unembed
from internal_policy.scans import store

pytestmark = pytest.mark.usefixtures("here")


def value(**changes: Any) -> dict[str, Any]:
    """A lens of the tiny models, which have 3 layers and hidden states of 32 entries."""
    draw = torch.Generator().manual_seed(0)
    jacobians = {layer: torch.randn(32, 32, generator=draw).half() for layer in (0, 1)}
    return {"J": jacobians, "n_prompts": 7, "source_layers": [0, 1], "d_model": 32, **changes}


@pytest.fixture
def lens(tmp_path) -> Path:
    path = tmp_path / "lens.pt"
    torch.save(value(provenance={"corpus": "web text", "model": "tiny"}), path)
    return path


def test_a_published_lens_reads_a_layers_output_through_its_jacobian(llama, lens):
    found = file.load(lens, llama)
    assert [str(point) for point in found.lens.at] == ["0.resid_post", "1.resid_post"]
    state = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian = value()["J"][1].double()
    expected = torch.stack([llama.model.norm(jacobian @ h) for h in state]) @ llama.lm_head.weight.T
    torch.testing.assert_close(unembed(llama, state, found, "1.resid_post"), expected, rtol=1e-12, atol=1e-12)
    assert found.lens.about["n_prompts"] == 7
    assert found.lens.about["provenance"]["corpus"] == "web text"


def test_a_safetensors_copy_is_kept_in_the_cache_under_the_digest_of_the_file(llama, lens, monkeypatch):
    file.load(lens, llama)
    (copy,) = (store.root() / "lenses").iterdir()
    assert load_file(copy).keys() == {"0.resid_post.jacobian", "1.resid_post.jacobian"}
    assert load_file(copy)["0.resid_post.jacobian"].dtype == torch.float16
    monkeypatch.setattr(torch, "load", None)  # the copy is read from then on
    assert file.load(lens, llama).lens.kind == "jacobian"


def test_a_lens_that_is_published_is_read_back(llama, tmp_path):
    draw = torch.Generator().manual_seed(0)
    points = (HookPoint(0, "resid_pre"), HookPoint(0, "resid_post"), HookPoint(1, "mlp_in"), HookPoint(1, "resid_post"))
    at = {point: Jacobian(torch.randn(32, 32, generator=draw)) for point in points}
    about = {"model": "tiny", "identity": "sha256 ab", "fitted_on": {"rollouts": 12}}
    published.publish(tmp_path / "out.pt", FittedLens(at, 3, about))
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert written.keys() == {"J", "n_prompts", "source_layers", "d_model", "provenance"}
    assert (written["n_prompts"], written["source_layers"], written["d_model"]) == (12, [0, 1], 32)
    again = published.read(tmp_path / "out.pt")
    assert again.about["identity"] == "sha256 ab"
    for layer in (0, 1):
        point = HookPoint(layer, "resid_post")
        torch.testing.assert_close(again.at[point][0], at[point][0].half(), rtol=0, atol=0)


def test_only_a_jacobian_lens_that_float16_holds_is_published(tmp_path):
    point = HookPoint(0, "resid_post")
    for at, said in (
        ({point: Translator(torch.zeros(4, 4), torch.zeros(4))}, "this one is tuned"),
        ({point: Jacobian(torch.full((4, 4), 1e5))}, "values above 65504"),
        ({HookPoint(0, "mlp_in"): Jacobian(torch.eye(4))}, "no map at a layer's output"),
    ):
        with pytest.raises(InputError, match=said):
            published.publish(tmp_path / "out.pt", FittedLens(at, 3))
    assert not (tmp_path / "out.pt").exists()


# hostile files


class Calls:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def matrix(layer: int, found: Any) -> dict[str, Any]:
    return value(J={**value()["J"], layer: found})


WRONG: dict[str, tuple[Any, str]] = {
    "wide": (matrix(1, torch.zeros(16, 16).half()), r"J of layer 1 has shape \(16, 16\), but d_model is 32"),
    "oblong": (matrix(1, torch.zeros(32, 31).half()), r"J of layer 1 has shape \(32, 31\)"),
    "NaN": (matrix(0, torch.full((32, 32), torch.nan)), "NaN or infinite values in J of layer 0"),
    "overflow": (matrix(0, torch.full((32, 32), 1e6).half()), "NaN or infinite values in J of layer 0"),
    "integers": (matrix(0, torch.zeros(32, 32, dtype=torch.int64)), "could run code|J of layer 0 is"),
    "text": (matrix(0, "eye(32)"), "J of layer 0 is 'eye"),
    "expanded": (
        {**matrix(0, torch.zeros(1).half().expand(10**6, 10**6)), "d_model": 10**6},
        "J of layer 0 isn't stored as a matrix",
    ),
    "text for a number": (value(d_model="32"), "'d_model' is '32'"),
    "prompts": (value(n_prompts=True), "'n_prompts' is True"),
    "no prompts": (value(n_prompts=0), "0 prompts"),
    "layers twice": (value(source_layers=[0, 0]), r"J for the layers \[0, 1\], but lists \[0, 0\]"),
    "a layer as text": (value(J={0: torch.eye(32), "0": torch.eye(32)}), r"its layers are \[0, '0'\]"),
    "a negative layer": (value(J={-1: torch.eye(32)}, source_layers=[-1]), r"its layers are \[-1\]"),
    "a missing field": ({"J": {}}, "'n_prompts' is nothing"),
    "no layers": (value(J={}, source_layers=[]), "it has 0 layers"),
    "code": (value(provenance=Calls(print, "hello")), "asks for '__builtin__ print', which isn't part of a lens"),
    "memory": (value(provenance=Calls(bytearray, 10**12)), "asks for '__builtin__ bytearray'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_published_lens_is_refused_in_one_sentence(case, tmp_path, capsys, llama):
    content, said = WRONG[case]
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=said) as error:
        file.load(tmp_path / "bad.pt", llama)
    assert len(str(error.value).splitlines()) == 1
    assert "hello" not in capsys.readouterr().out
    assert not (store.root() / "lenses").exists()


def rewritten(path: Path, change: Any, compress: int = zipfile.ZIP_STORED) -> None:
    """Write the archive again, with each part changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    path.unlink()
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, part in parts.items():
            archive.writestr(name, change(name, part))


def huge(name: str, part: bytes) -> bytes:
    """The pickle with a storage that claims 2 billion numbers instead of 1024."""
    if not name.endswith("data.pkl"):
        return part
    count = b"M" + struct.pack("<H", 1024)
    assert count in part
    return part.replace(count, b"J" + struct.pack("<i", 2**31 - 1))


DAMAGED: dict[str, tuple[Any, str]] = {
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps(Calls(print, "hello"))), "Can't read .* torch.save"),
    "nonsense": (lambda path: path.write_bytes(b"nonsense"), "Can't read"),
    "nothing": (lambda path: path.write_bytes(b""), "Can't read"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "Can't read"),
    "a bomb": (
        lambda path: rewritten(path, lambda _, part: part + bytes(10**6), zipfile.ZIP_DEFLATED),
        "is compressed, which torch.save doesn't do",
    ),
    "a broken pickle": (
        lambda path: rewritten(path, lambda name, part: part[:-30] if "pkl" in name else part),
        "Can't",
    ),
    "a protocol with hidden names": (
        lambda path: torch.save(value(provenance=Calls(print, "hello")), path, pickle_protocol=4),
        "asks for 'STACK_GLOBAL'",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_or_hostile_archive_is_refused_in_one_sentence(case, lens, llama, capsys):
    make, said = DAMAGED[case]
    make(lens)
    with pytest.raises(InputError, match=said) as error:
        file.load(lens, llama)
    assert len(str(error.value).splitlines()) == 1
    assert "hello" not in capsys.readouterr().out


def test_a_storage_that_claims_more_than_the_file_takes_no_more_memory(lens):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rewritten(lens, huge)
    found = published.read(lens)
    assert torch.equal(found.at[HookPoint(1, "resid_post")][0], value()["J"][1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # of 4,000,000 kB


def test_links_and_devices_are_followed_or_refused(lens, llama, tmp_path):
    (tmp_path / "link.pt").symlink_to(lens)
    assert file.load(tmp_path / "link.pt", llama).lens.kind == "jacobian"
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    for name in ("loop.pt", "zero.pt", "gone.safetensors", "a" * 300 + ".safetensors"):
        with pytest.raises(InputError, match="doesn't exist"):
            file.load(tmp_path / name, llama)


ODD = {
    "integers": ({"0.resid_post.jacobian": torch.zeros(32, 32, dtype=torch.int32)}, "as int32, but maps are float16"),
    "float8": ({"0.resid_post.jacobian": torch.zeros(32, 32).to(torch.float8_e4m3fn)}, "as float8_e4m3fn, but maps"),
    "overflow": ({"0.resid_post.jacobian": torch.full((32, 32), 1e6).half()}, "NaN or infinite values"),
    "two kinds": (
        {"0.resid_post.jacobian": torch.zeros(32, 32), "1.weight": torch.zeros(32, 32), "1.bias": torch.zeros(32)},
        "both a translator and a Jacobian for 0.resid_post",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_tensors_in_a_safetensors_file_are_refused(case, tmp_path, llama):
    tensors, said = ODD[case]
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=said):
        file.load(tmp_path / "odd.safetensors", llama)


def headed(header: Any, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


HEADERS = {
    "a long header": struct.pack("<Q", 2**40) + b"{}",
    "a list": headed([1]),
    "a deep header": headed(b"[" * 100_000),
    "metadata that isn't text": headed({"__metadata__": {"internal_policy": 7}, "0.weight": {}}),
    "a size beyond the file": headed(
        {"0.resid_post.jacobian": {"dtype": "F32", "shape": [32, 32], "data_offsets": [0, 4096]}}, bytes(64)
    ),
    "a shape beyond its bytes": headed(
        {"0.resid_post.jacobian": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}}, bytes(64)
    ),
    "a key twice": headed(
        b'{"0.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
        b'"0.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        bytes(8),
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_hostile_header_is_refused_in_one_sentence(case, tmp_path, llama):
    (tmp_path / "bad.safetensors").write_bytes(HEADERS[case])
    with pytest.raises(InputError, match=r"Can't read|isn't|has 0\.weight of shape") as error:
        file.load(tmp_path / "bad.safetensors", llama)
    assert len(str(error.value).splitlines()) == 1


# the hub


@pytest.fixture
def repository(lens, tmp_path, monkeypatch) -> list[tuple[str, str, str]]:
    """A hub with one repository that has one lens. What is asked for is kept."""
    asked = []
    snapshot = tmp_path / "models--org--lenses" / "snapshots" / ("ab" * 20)

    def download(name: str, path: str, *, revision: str) -> str:
        asked.append((name, path, revision))
        if path != "tiny/lens.pt":
            raise hub.EntryNotFoundError("no such file")
        (snapshot / "tiny").mkdir(parents=True, exist_ok=True)
        (snapshot / path).write_bytes(lens.read_bytes())
        return str(snapshot / path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize(("name", "revision"), [("", "main"), ("@refs/pr/3", "refs/pr/3"), ("@v1", "v1")])
def test_a_lens_on_the_hub_is_downloaded_and_its_commit_known(name, revision, repository, llama):
    found = source.find(f"org/lenses:tiny/lens.pt{name}")
    assert repository == [("org/lenses", "tiny/lens.pt", revision)]
    assert found.commit == "ab" * 20
    assert file.load(f"org/lenses:tiny/lens.pt{name}", llama).lens.kind == "jacobian"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/lenses:other.pt", "org/lenses has no file other.pt at main. Look it up at"),
        ("org/lenses:../../etc/lens.pt", "isn't the path of a lens in org/lenses"),
        ("org/lenses:/etc/lens.pt", "isn't the path of a lens in org/lenses"),
        ("org/lenses:a\\..\\lens.pt", "isn't the path of a lens in org/lenses"),
        ("org/lenses:lens.txt", "isn't the path of a lens in org/lenses"),
        ("org/lenses:" + "a" * 300 + ".pt", "has no file aaa"),
    ],
)
def test_a_path_outside_the_repository_or_without_a_lens_is_refused(name, said, repository, llama):
    with pytest.raises(InputError, match=said) as error:
        file.load(name, llama)
    assert len(str(error.value).splitlines()) == 1


def test_a_hub_that_cannot_be_reached_gets_one_sentence(monkeypatch, llama):
    def download(*_: Any, **__: Any) -> str:
        raise hub.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InputError, match="Can't download org/lenses because the hub can't be reached, and there is no"):
        file.load("org/lenses:tiny/lens.pt", llama)


def test_a_scan_records_the_commit_of_a_lens_on_the_hub(repository, folder, capsys):
    given = ["--lens", "published=org/lenses:tiny/lens.pt@v1", "--sites", "resid_post", "--readout", "norm"]
    assert main(["scan", "--model", str(folder), "--text", "One two three", *given, "--output", "s"]) == 0
    printed = capsys.readouterr()
    assert "doesn't record which model it was fitted to" in printed.err
    record = store.record(Path("s"))
    assert record["selection"]["readouts"] == ["norm", "published"]
    assert record["asked"]["lens"] == [["published", "org/lenses:tiny/lens.pt@v1"]]
    assert record["asked"]["content"] == {"org/lenses:tiny/lens.pt@v1": {"revision": "ab" * 20}}
