"""The tools of `internal-policy mcp`: list, show, compare, tokens and check, which only read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from internal_policy.cli import ablate, align, check, compare, contents, show
from internal_policy.cli.inventory import Kind
from internal_policy.cli.served import places
from internal_policy.errors import InputError

LISTED, TOKENS = 50, 16
"""Most items of `list`, and most tokens of `tokens`, in one answer."""


@dataclass(frozen=True)
class Tools:
    """What can be asked about the cache, the package and some folders."""

    folders: Sequence[Path] = ()
    """Folders outside the cache that may be opened."""

    def every(self) -> Mapping[str, Callable[..., Any]]:
        """Each tool by its name."""
        return {
            "list": self.listed,
            "show": self.show,
            "compare": self.compare,
            "tokens": self.tokens,
            "check": self.check,
        }

    def listed(
        self, kind: Literal["scan", "ablation", "alignment", "run", "evaluation"] | None = None, first: int = 0
    ) -> Any:
        """List scans, ablations, alignments, training runs and evaluations: name, kind, model, state, size.

        Start here: the other tools take these names. `kind` keeps one kind. Up to 50 are listed, from number `first`.
        """
        kinds: tuple[Kind, ...] = () if kind is None else (kind,)
        found = places.items(self.folders, *kinds)
        some = found[max(first, 0) : max(first, 0) + LISTED]
        return {"total": len(found), "first": first, "items": [contents.described(item) for item in some]}

    def show(self, name: str, readout: str | None = None) -> Any:
        """Show what a scan, ablation, alignment or training run found, as `internal-policy show --json` does.

        Of a scan: entropies in nats by layer and site, the suggested target layer, and sentences on what they show.
        `readout` is raw, norm or the name of a lens of the scan.
        """
        item = places.find(name, self.folders, "scan", "ablation", "alignment", "run")
        if readout is not None and item.kind != "scan":
            raise InputError(f"readout only applies to scans, but {item.name} isn't one. Leave it out.")
        if item.kind == "scan":
            return show.facts(item.folder, readout)
        if item.kind == "ablation":
            return ablate.facts(item.folder, ablate.scan_of(item.folder, self._may_open))
        return align.facts(item.folder) if item.kind == "alignment" else show.facts_of_run(item)

    def compare(
        self,
        a: str,
        b: str | None = None,
        against_readout: str | None = None,
        readout: str | None = None,
        measure: str = "entropy",
        sites: Sequence[str] = compare.SHOWN,
    ) -> Any:
        """Compare two scans of the same tokens, or two readouts of one scan (`against_readout`), by layer.

        A is subtracted from B. `measure` is entropy, change, logprob, rank, top1, kl, norm or cosine; `sites` are those
        whose rows are wanted: resid_pre, attn_in, attn_out, resid_mid, mlp_in, mlp_out, resid_post, final.
        """
        if (b is None) == (against_readout is None):
            raise InputError("compare needs two scans, or one scan and against_readout. Give one of them.")
        one = self._view(a, readout)
        other = self._view(b, readout) if b is not None else replace(one, readout=str(against_readout))
        if one == other:
            raise InputError(f"{a} would be compared with itself. Choose another scan or readout.")
        found = compare.facts(one, other, measure)
        return {**found, "differences": [row for row in found["differences"] if row["site"] in sites]}

    def tokens(
        self,
        name: str,
        rollout: int = 0,
        first: int = 0,
        count: int = 8,
        site: str = "resid_post",
        readout: str | None = None,
        layers: Sequence[int] | None = None,
    ) -> Any:
        """Show what each layer would say next at some tokens of a response of a scan.

        For each of up to 16 tokens from position `first`: the token, and for each layer the top token with its
        probability, the entropy in nats, the actual token's rank and log probability, and KL to the model's own policy.
        The layer one past the last is the model's own policy. `layers` keeps some layers.
        """
        from internal_policy.look import tokens, view

        if not 1 <= count <= TOKENS or first < 0:
            raise InputError(f"first is {first} and count {count}. Use positions from 0, and 1 to {TOKENS} tokens.")
        item = places.find(name, self.folders, "scan")
        one = view.View(item.folder, readout) if readout else view.for_tokens(item.folder)
        one = replace(one, first=first, last=first + count - 1)
        record = view.check(one)
        view.check_rollout(one, rollout)
        if site not in record["selection"]["sites"]:
            raise view.absent(one, "entropy", site)
        rows = tokens.at_site(one, rollout, site)
        rows = rows if layers is None else rows[rows["layer"].isin(list(layers))]
        kept = [name for name in rows if name not in ("position", "id", "token")]
        said = [
            {"position": at, "token": part["token"].iloc[0], "layers": part[kept].to_dict("records")}
            for at, part in rows.groupby("position")
        ]
        return {"scan": item.name, "rollout": rollout, "site": site, "readout": one.readout, "tokens": said}

    def check(self, name: str, readout: str | None = None) -> Any:
        """Judge whether the entropy pattern of a scan is real: each claim under each control.

        What the scan didn't measure is untested, and `command` would measure it.
        """
        from internal_policy.look import check as look

        one = self._view(name, readout)
        return check.facts(one, look.check(one))

    def _view(self, name: str, readout: str | None) -> Any:
        """A view of a scan. Raises InputError, also for a readout that was not measured."""
        from internal_policy.look import view

        item = places.find(name, self.folders, "scan")
        one = view.View(item.folder, readout) if readout else view.default(item.folder)
        view.check(one)
        return one

    def _may_open(self, path: Path) -> bool:
        return places.holds(path, self.folders)
