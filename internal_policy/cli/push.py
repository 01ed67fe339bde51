"""`internal-policy push`: upload a scan or a lens to the Hugging Face Hub."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from internal_policy import files
from internal_policy.cli import inventory, outputs, progress
from internal_policy.cli.common import Folder, JsonOptions, Text
from internal_policy.cli.console import commands, document, paragraph
from internal_policy.errors import InputError, counted, require
from internal_policy.scans.address import MAIN, REPOSITORY, Address

if TYPE_CHECKING:
    from internal_policy.look.view import View

CARD = "README.md"
LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""A licence as the Hub names it."""


@dataclass(frozen=True, kw_only=True)
class Push(JsonOptions):
    """Upload a scan or a lens to the Hugging Face Hub.

    A scan becomes a data set: its tables, scan.json, and a card with the entropy flow, the table by layer, how it was
    measured, and checksums. All go up in one commit. Everyone who can read the data set can read the prompts and
    responses in it. Nothing is uploaded if one of them looks as if it held an access token. A lens becomes a model
    repository with its card.

    For example:
    $ internal-policy push demo-qwen3 org/name --license mit --dry-run card
    $ internal-policy push 3fa9 org/name --license cc-by-4.0 --private
    $ internal-policy push lens.safetensors org/name
    """

    group: ClassVar = "Upload"
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN|LENS")]
    """Scan to upload: its folder, the first digits of its name in `internal-policy ls`, or a bundled scan such as
    demo-qwen3. Or the .safetensors file of a lens."""
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ORG/NAME")]
    """Name of the data set, or for a lens of the model; it is made if there is none."""
    license: Text = None
    """Licence of the prompts and responses, as the Hub names it: cc-by-4.0, apache-2.0, mit, other, ... A scan needs
    one."""
    private: bool = False
    """Make the repository private, so that only you or the members of the organisation can read it."""
    revision: str = MAIN
    """Branch to upload to; a new one begins at main."""
    readout: Text = None
    """Readout of the card's figure and table; by default the first that was measured."""
    dry_run: Folder = None
    """Write the card to this folder to look at it, and upload nothing."""
    force: bool = False
    """Replace an earlier upload in the repository, or an earlier card in the folder of --dry-run."""
    texts_checked: bool = False
    """Upload texts that look as if they held an access token, because you have checked them."""
    yes: Annotated[bool, tyro.conf.arg(aliases=["-y"])] = False
    """Upload without asking."""


@dataclass(frozen=True)
class Prepared:
    """What will be uploaded."""

    address: Address
    called: str
    """It in a few words."""
    message: str
    """The message of the commit."""
    card: Mapping[str, bytes]
    """The card and its figure, by the names of their files."""
    data: Mapping[str, Path]
    """The other files."""
    readers: str
    """What those who can read it can read, as part of a sentence."""
    command: str
    """A command that opens it, with {} for its address."""


def run(options: Push) -> bool:
    """Say what will be uploaded, ask, and upload it; True if the answer is no."""
    if not REPOSITORY.fullmatch(options.repository):
        raise InputError(f"'{options.repository:.200}' isn't the name of a repository. Write org/name.")
    if options.license is not None and not LICENCE.fullmatch(options.license):
        raise InputError(
            f"--license is '{options.license:.80}', but the Hub's names of licences are like cc-by-4.0, apache-2.0 "
            f"and mit. Choose one of {LICENCES}."
        )
    if options.dry_run is not None:
        _check_folder(options.dry_run, options.force)
        _write_card(_prepared(options), options.dry_run, as_json=options.json)
        return False
    require("hub", "huggingface_hub")
    return _pushed(options)


def _is_lens(options: Push) -> bool:
    return Path(options.what).suffix == ".safetensors"


def _prepared(options: Push) -> Prepared:
    return _lens(options) if _is_lens(options) else _scan(options)


def _pushed(options: Push) -> bool:
    """Upload after asking; True if the answer is no. Raises InputError."""
    from internal_policy.scans import upload

    _check_licence(options)
    address = Address("model" if _is_lens(options) else "dataset", options.repository, options.revision)
    held = upload.holding(address)
    upload.check(address, held, private=options.private, force=options.force)
    prepared = _prepared(options)
    upload.validate(address, prepared.card[CARD].decode())
    is_private = held.private if held.exists else options.private
    said = f"{prepared.called} to {'private' if is_private else 'public'} {prepared.address}: {_sizes(prepared)}"
    progress.note(f"Upload {said}. {_audience(is_private)} {prepared.readers}.")
    if not options.yes and not progress.agreed("Upload it?", "Nothing was uploaded", "Add --yes to upload it."):
        progress.note("Nothing was uploaded.")
        if options.json:
            document({"error": {"message": "Nothing was uploaded.", "exit_code": 1}})
        return True
    content: dict[str, Path | bytes] = {**prepared.data, **prepared.card}
    stale = {name for name in held.files if _is_ours(name)} - content.keys()
    made = upload.upload(prepared.address, content, prepared.message, private=options.private, stale=stale)
    pinned = replace(prepared.address, revision=made.commit)
    if options.json:
        about = {"repository": options.repository, "address": str(pinned), "commit": made.commit, "url": made.url}
        document(
            {**about, "private": is_private, "license": options.license, **_listed(prepared), "removed": made.removed}
        )
        return False
    paragraph(f"Uploaded {prepared.called} to {made.url}")
    commands([prepared.command.format(pinned)])
    return False


def _audience(is_private: bool) -> str:
    return "Only those whom you let in can read" if is_private else "Everyone can read"


def _is_ours(name: str) -> bool:
    """Whether `push` may have uploaded a file of this name."""
    from internal_policy.scans import records

    return name == records.VOCABULARY or records.PART.fullmatch(name) is not None


def _scan(options: Push) -> Prepared:
    """A scan, checked from end to end, with its card. Raises InputError."""
    from internal_policy.look import view
    from internal_policy.scans import records, store

    _check_licence(options)
    folder = inventory.find_scan(options.what)
    record = store.record(folder)
    if wrong := store.damaged(folder):
        raise InputError(f"{folder / wrong[0]} is missing or was altered. {store.repair(folder)}")
    _check_texts(folder, checked=options.texts_checked)
    one = view.View(folder, options.readout or record["selection"]["readouts"][0])
    view.check(one)
    named = [records.RECORD, *record["files"]]
    return Prepared(
        Address("dataset", options.repository, options.revision),
        f"the scan {record['digest']} of {record['model']}",
        f"Upload the scan {record['digest']} of {record['model']}",
        _card(one, options.repository, str(options.license)),
        {name: folder / name for name in named},
        f"its prompts and {counted(record['rollouts'], 'response')}, under {options.license}",
        "internal-policy show {}",
    )


def _check_licence(options: Push) -> None:
    """Raise InputError for a scan without a licence of its texts."""
    if options.license is None and not _is_lens(options):
        raise InputError(
            "push publishes the prompts and responses of a scan, so it needs their licence. Add --license cc-by-4.0, "
            f"apache-2.0, mit, other or another of {LICENCES}."
        )


def _check_texts(folder: Path, *, checked: bool) -> None:
    """Raise InputError for a text that looks as if it held a secret; note paths of this machine in scan.json."""
    from internal_policy.scans import records, secrets

    found = None if checked else next(secrets.places(folder), None)
    if found is not None:
        raise InputError(
            f"Rollout {found.rollout} looks as if it held an access token, in {found.column}. Nothing was uploaded. "
            "Remove it from the problems or responses and scan again, or add --texts-checked if it isn't a secret."
        )
    home = str(Path.home())
    if len(home) > 1 and home in (folder / records.RECORD).read_text(encoding="utf-8"):
        progress.note(f"{records.RECORD} and the card hold paths in {home}, which are uploaded as well.")


def _card(one: "View", repository: str, licence: str) -> dict[str, bytes]:
    """The card of a scan, and its figure if the entropy was measured. Raises InputError."""
    from internal_policy.look import card, view

    found = {CARD: card.markdown(one, repository, licence).encode()}
    if "entropy" in view.check(one)["selection"]["measures"]:
        require("app", "plotly", "kaleido")
        from internal_policy.look import catalogue, export
        from internal_policy.look.catalogue import Choice

        found[card.FIGURE] = export.image(catalogue.draw("flow", [one], Choice()), "png")
    return found


def _lens(options: Push) -> Prepared:
    """The file of a lens with its card. Raises InputError."""
    require("models", "torch", "safetensors")
    from internal_policy.lenses import card, card_text, file

    path = Path(options.what)
    if options.readout is not None:
        raise InputError("--readout only applies to scans. Leave it out.")
    shown = card.of(file.read(path, *file.sizes(path)))
    text = card_text.markdown(shown, path.name, options.license)
    return Prepared(
        Address("model", options.repository, options.revision),
        f"the {shown.kind} lens {path.name}",
        f"Upload {path.name}",
        {CARD: text.encode()},
        {path.name: path},
        "its maps and its card",
        "internal-policy show {}",
    )


def _check_folder(folder: Path, force: bool) -> None:
    """Raise InputError if the card can't be written to a folder."""
    outputs.check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outputs.check_file(folder / CARD, force)


def _write_card(prepared: Prepared, folder: Path, *, as_json: bool) -> None:
    """Write the card to a folder, and say what would be uploaded."""
    for name, content in prepared.card.items():
        with files.replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    if as_json:
        document({"repository": prepared.address.repository, "card": str(folder / CARD), **_listed(prepared)})
        return
    progress.note(f"Wrote {folder / CARD}. `push` would upload {_sizes(prepared)}, and hasn't.")


def _listed(prepared: Prepared) -> dict[str, Any]:
    """The files that go up, and how many bytes they have."""
    names = [*prepared.data, *prepared.card]
    size = sum(path.stat().st_size for path in prepared.data.values()) + sum(map(len, prepared.card.values()))
    return {"files": names, "bytes": size}


def _sizes(prepared: Prepared) -> str:
    found = _listed(prepared)
    return f"{counted(len(found['files']), 'file')}, {found['bytes'] / 1e6:,.1f} MB"
