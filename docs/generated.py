"""Write the pages and parts of pages that come from the code: families, commands, notebooks. A Sphinx extension."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.application import Sphinx

if TYPE_CHECKING:
    from internal_policy.cli.schemas.field import Field
    from internal_policy.cli.usage import Option, Page

ROOT = Path(__file__).parent.parent


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir)))
    app.connect("source-read", read)
    return {"parallel_read_safe": True}


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Lead the links of a page to the copies of the notebooks."""
    source[0] = beside(source[0])


def beside(text: str) -> str:
    """A page whose links to notebooks lead to their copies, which lie beside it."""
    return text.replace("](../notebooks/", "](notebooks/")


def write(folder: Path) -> None:
    """Write the generated parts to `_generated`, and copy the notebooks, below a folder; unchanged files stay."""
    for part in (
        families,
        commands,
        documents,
        scan_figures,
        alignment_figures,
        run_figures,
        configuration,
        alignments,
    ):
        put(folder / "_generated" / f"{part.__name__}.md", part())
    for name, drawn in pictures().items():
        put(folder / "_generated" / f"{name}.svg", drawn)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        put(folder / "notebooks" / path.name, path.read_text(encoding="utf-8"))


def put(path: Path, text: str) -> None:
    """Write a file unless it holds this text already, which would make Sphinx read it again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]) + "\n"


def line(cells: Iterable[str]) -> str:
    """A line of a Markdown table: each cell on one line, its bars escaped."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def code(text: str) -> str:
    """A text as Markdown code."""
    return f"`{text}`"


def families() -> str:
    """The table of model families, where each reads its sites, and what is proved of it."""
    from internal_policy.cli.families import all_sites, differences
    from internal_policy.models.proofs import PROOFS
    from internal_policy.models.rows import FAMILIES
    from internal_policy.models.rows.refused import REFUSED
    from internal_policy.models.trial import where_it_reads
    from internal_policy.readers import compared

    alike = {repr(where_it_reads(row)): name for name, row in reversed(FAMILIES.items())}
    rows = (
        (
            code(row.model_type or name),
            code(alike[repr(where_it_reads(row))]),
            str(len(all_sites(asdict(row)))),
            row.norms,
            "yes" if name in compared.SAME.split() else "",
            "; ".join(differences(asdict(row))),
        )
        for name, row in sorted(FAMILIES.items(), key=lambda entry: entry[1].model_type or entry[0])
    )
    types = {row.model_type or name for name, row in FAMILIES.items()}
    return "\n".join(
        [
            "## Families\n",
            f"{len(types)} model types have a row; some have several. *Read like* names the first row that reads every",
            "site in the same place. *TransformerLens* shows whether that library can read the model too. nnsight",
            "reads all but nanochat, OPT and models whose unembedding has a bias.\n",
            table(("`model_type`", "read like", "sites", "norms", "TransformerLens", "what is different"), rows),
            "These types can't be read:\n",
            table(("`model_type`", "reason"), ((code(kind), reason) for kind, reason in REFUSED.items())),
            sites({name: row.sites for name, row in FAMILIES.items()}),
            "## What is proved\n",
            "`internal-policy families` builds a tiny random model of each family with the installed transformers, and",
            "checks in float64, to the last bit (the last two up to rounding):\n",
            *(f"- {claim}" for claim in PROOFS),
        ]
    )


def sites(found: Mapping[str, Mapping[str, tuple[str, str]]]) -> str:
    """Where the first family, and those like it, read their sites, and what the others read elsewhere."""
    from internal_policy.measure.sites import SITES

    like: dict[tuple[str, ...], list[str]] = {}  # where the sites are read -> the families that read them there
    for name, row in found.items():
        like.setdefault(tuple(place(*row.get(site, ("", ""))) for site in SITES), []).append(code(name))
    (usual, most), *others = like.items()
    elsewhere = (
        [f"{code(site)}: {at}" for site, at, first in zip(SITES, places, usual, strict=True) if at != first]
        for places, _ in others
    )
    rows = ((", ".join(names), "; ".join(there)) for (_, names), there in zip(others, elsewhere, strict=True))
    return "\n".join(
        [
            "## Where each site is read\n",
            f"A site is the input or the output of a module of the decoder layer. In {', '.join(most)}:\n",
            table(("site", "read from"), zip(map(code, SITES), usual, strict=True)),
            "The others differ from these as follows:\n",
            table(("family", "sites that are read elsewhere"), rows),
        ]
    )


def place(module: str, side: str) -> str:
    """Where a site is read, in words."""
    if not side:
        return "it has none"
    return f"{side} of {code(module) if module else 'the layer'}"


def scan_figures() -> str:
    """The methods of `scan.plot`."""
    from internal_policy.look.catalogue import FIGURES, Choice

    return figures("scan", FIGURES, Choice)


def alignment_figures() -> str:
    """The methods of `found.plot` of an alignment."""
    from internal_policy.look.alignment_catalogue import FIGURES, AlignmentChoice

    return figures("found", FIGURES, AlignmentChoice)


def run_figures() -> str:
    """The methods of `run.plot`."""
    from internal_policy.look.run_catalogue import FIGURES, RunChoice

    return figures("run", FIGURES, RunChoice)


def figures(opened: str, entries: "Mapping[str, Any]", choice: type) -> str:
    """The methods that draw, the keywords that each takes, and what the keywords mean."""
    names = [field.name for field in fields(choice)]
    drawn = (
        (
            code(f"{opened}.plot.{name.replace('-', '_')}({'*scans' if 'against' in entry.uses else ''})"),
            getdoc(entry.draw) or "",
            ", ".join(code(keyword) for keyword in names if keyword in entry.uses),
        )
        for name, entry in entries.items()
    )
    keywords = (
        (code(field.name), code(repr(field.default)), explained(choice, field.name)) for field in fields(choice)
    )
    return "\n".join(
        [
            table(("method", "figure", "keywords"), drawn),
            "Each returns a plotly figure, and also takes `style`.\n",
            table(("keyword", "default", "meaning"), keywords),
        ]
    )


def explained(kind: type, name: str) -> str:
    """The docstring below a field of a dataclass."""
    from internal_policy.cli.usage import docstrings

    return docstrings(kind).get(name, "")


def alignments() -> str:
    """The figures of the bundled alignments."""
    from internal_policy import bundle, open_alignment

    return "\n".join(
        f"![Gain of a step on each layer of {open_alignment(folder).about['model']}](_generated/{folder.name}.svg)\n"
        for folder in reversed(bundle.alignments())
    )


def pictures() -> dict[str, str]:
    """The figure of each bundled alignment as SVG, by its name."""
    from internal_policy import bundle, open_alignment
    from internal_policy.look.sketch import sketch

    drawn = {folder.name: sketch(open_alignment(folder).plot.alignment()) for folder in bundle.alignments()}
    alone = '<svg xmlns="http://www.w3.org/2000/svg" '  # a picture doesn't know the colours of its page
    return {
        name: text.replace("<svg ", alone, 1).replace('style="', 'style="background:white;', 1)
        for name, text in drawn.items()
    }


def configuration() -> str:
    """The fields of BuPOConfig that TRL's GRPOConfig lacks, or for which it has another default."""
    from internal_policy import BuPOConfig

    known = {field.name: field for field in fields(BuPOConfig)}
    own = (known[name] for name in BuPOConfig.__annotations__)
    rows = (
        (
            code(field.name),
            code(repr(field.default_factory() if callable(field.default_factory) else field.default)),
            field.metadata.get("help", "as in GRPOConfig, which has another default"),
        )
        for field in own
    )
    return table(("field", "default", "meaning"), rows)


def commands() -> str:
    """Every command with its options."""
    from internal_policy.cli.commands import reference

    return "\n".join(command(name, page) for name, page in reference().items())


def documents() -> str:
    """What every command prints with --json."""
    from internal_policy.cli.schemas.documents import DOCUMENTS

    first: dict[int, str] = {}
    parts = []
    for name, found in DOCUMENTS.items():
        parts.append(f"## {name}\n")
        for each in found:
            if id(each) in first:
                parts.append(f"**{each.when.capitalize()}**, as [{first[id(each)]}](#{first[id(each)]}) prints it.\n")
                continue
            first[id(each)] = name
            parts += [document(each.when, each.value)]
    return "\n".join(parts)


def document(when: str, value: "Field") -> str:
    """A document field by field."""
    from internal_policy.cli.schemas.field import lines

    each = ", a list with an object for each" if value.type.endswith("[]") else ""
    if not value.fields:
        return f"**{when.capitalize()}**: {value.meaning}.\n"
    rows = (
        (code(path.removesuffix("?")), field.type.replace("|", " or "), field.meaning + optional(path))
        for path, field in lines(value.fields)
    )
    return f"**{when.capitalize()}**{each}\n\n" + table(("field", "type", "meaning"), rows)


def optional(path: str) -> str:
    """A remark for a field that isn't in every document."""
    return " (not always there)" if path.endswith("?") else ""


def command(name: str, page: "Page") -> str:
    """What a command does, examples, and its options by group."""
    parts = [f"## internal-policy {name}", page.summary]
    parts += [f"```text\n{text}\n```" if text.startswith("  ") else text for text in page.text]
    parts += ["```bash\n" + "\n".join(page.examples) + "\n```"] if page.examples else []
    for title, options in page.groups.items():
        parts += [f"**{title}**", *map(entry, options)]
    return "\n\n".join(parts) + "\n"


def entry(option: "Option") -> str:
    """An option with its help and its default, as an entry of a definition list."""
    needed = " Required." if option.required and option.flags else ""
    default = f" Default: {code(option.default)}." if option.default else ""
    return f"{code(option.typed)}\n: {option.help}{needed}{default}"
