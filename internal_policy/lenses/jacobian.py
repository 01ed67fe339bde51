"""Fit a Jacobian lens: the average derivative of the last layer's output with respect to each hidden state."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig

from internal_policy.errors import InputError, counted, first_line
from internal_policy.lenses.lens import FittedLens
from internal_policy.lenses.sums import Sums, check_memory
from internal_policy.measure.matmul import precision
from internal_policy.models.adapters import inside
from internal_policy.models.families import family_of, layer_sites, places_at
from internal_policy.models.hooks import HookPoint, check_visits
from internal_policy.models.memory import in_halves
from internal_policy.models.modules import decoder_layers
from internal_policy.models.offload import has_offloaded
from internal_policy.models.passes import alone, device_of, evaluating
from internal_policy.scans.reader import Reader, reader_of
from internal_policy.scans.shard import WHOLE, Shard
from internal_policy.tasks.prompts import Ids

BATCH = 4
"""Sequences read together; halved when memory runs out. On a CPU, larger batches are hardly faster."""
BLOCK = 64
"""Gradients of each sequence that one forward pass serves, between two checkpoints at most."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A Jacobian lens, and those of two random halves of its sequences."""

    lens: FittedLens
    """Fitted on all sequences."""
    halves: tuple[FittedLens, FittedLens]
    """Fitted on one half of them each."""


@dataclass(frozen=True)
class Settings:
    """How a Jacobian is estimated. Raises InputError for values out of range."""

    probes: int | None = None
    """How many output dimensions are differentiated for each sequence; None for all, which is exact."""
    skip: int = 16
    """Positions at the start of each sequence to leave out, because many heads attend to them whatever they hold."""
    seed: int = 0
    """Random seed of the order of the sequences, and of the dimensions that each gives."""

    def __post_init__(self) -> None:
        """Raise InputError for values out of range."""
        if self.probes is not None and self.probes < 1:
            raise InputError(f"probes is {self.probes}; it must be 1 or more.")
        if self.skip < 0:
            raise InputError(f"skip is {self.skip}; it must be 0 or more.")


def pieces(ids: Ids, length: int, skip: int, bos: int | None = None) -> list[Ids]:
    """A text cut into sequences of `length` tokens. The last may be shorter, and a text that is too short gives none.

    If the text begins with the token `bos`, each sequence does. A sequence needs a position after the first `skip`, and
    a token after it. Raises InputError if `length` has none.
    """
    if length < skip + 2:
        raise InputError(
            f"max-length is {length}, but of each sequence the first {skip} positions (--skip) and the last are left "
            f"out. Use at least {skip + 2}."
        )
    first = ids[:1] if bos is not None and ids[:1] == (bos,) else ()
    rest, step = ids[len(first) :], length - len(first)
    parts = [(*first, *rest[start : start + step]) for start in range(0, len(rest), step)]
    return [part for part in parts if len(part) >= skip + 2]


def source_of(config: PreTrainedConfig, point: HookPoint) -> HookPoint:
    """The hook point that has the same Jacobian as `point` and is read in its place.

    What a module adds to the stream changes the last layer's output as much as the stream after the addition does, so
    attn_out has the Jacobian of resid_mid, and mlp_out that of resid_post (both that of resid_post in parallel blocks).
    A layer that also adds something else at its end, or rescales the stream there (Gemma 4), has no such identity at
    resid_post. Where resid_mid is read on its way to the norm alone (OPT flattens it), attn_out is read for both.
    """
    family = family_of(config)
    if "resid_mid" in family.flat and point.site in ("attn_out", "resid_mid"):
        return HookPoint(point.layer, "attn_out")
    if point.site not in ("attn_out", "mlp_out"):
        return point
    if point.site == "attn_out" and "resid_mid" in places_at(config, point.layer):
        return HookPoint(point.layer, "resid_mid")
    return point if family.extra or family.scale else HookPoint(point.layer, "resid_post")


def dimensions(rank: int, d_model: int, settings: Settings) -> Int[Tensor, " probes"]:
    """The output dimensions that are differentiated for a sequence, by its rank in random order.

    Sequences of even and of odd rank are the two halves. In each, they are consecutive entries of a stream of random
    permutations of all dimensions. Sequences thus share each permutation without overlap, which leaves no error where
    their Jacobians are alike; and each dimension is as likely for every sequence, which makes the mean over the
    sequences that give a dimension unbiased.
    """
    if settings.probes is None or settings.probes >= d_model:
        return torch.arange(d_model)
    half, first = rank % 2, rank // 2 * settings.probes
    cycles = range(first // d_model, (first + settings.probes - 1) // d_model + 1)
    names = [f"{settings.seed} {half} {cycle}" for cycle in cycles]
    seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) for name in names]
    stream = torch.cat([torch.randperm(d_model, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return stream[first - cycles[0] * d_model :][: settings.probes]


def fit(
    model: nn.Module,
    sequences: Sequence[Ids],
    points: Sequence[HookPoint],
    settings: Settings = Settings(),
    *,
    folder: Path | None = None,
    shard: Shard = WHOLE,
    advance: Callable[[int, int], None] = lambda *_: None,
    smaller: Callable[[int], None] = lambda _: None,
) -> Fitted | int:
    """The Jacobian lens of `points`: the mean over `sequences` of each one's own Jacobian, with equal weights.

    That is J[i, j] = d h_final[i] / d h[j], where h_final is the output of the last layer before the final norm: the
    sum over target positions, and the mean over source positions, of all positions but the first `skip` and the last
    ("Verbalizable Representations Form a Global Workspace in Language Models",
    transformer-circuits.pub/2026/workspace). Rows are estimated by `dimensions`, and summed in float64. `folder` keeps
    the sums, so that a fit that was interrupted continues, with the same result. With a `shard`, only its batches are
    read, and the result is the number of shards that aren't complete in `folder`; once all are, it equals that of a
    single process, up to the order of addition. `advance` is called with the number of gradients in each piece of the
    work, and with how many tokens the backward passes went through (0 if an earlier run did it), and `smaller` with how
    many sequences are read at a time once memory runs out. Raises InputError.
    """
    reader = reader_of(model)
    config, d_model = reader.model.config, reader.unembedding.weight.shape[1]
    check(model, sequences, points, d_model, settings)
    source = {point: source_of(config, point) for point in points}
    key = _key(sequences, source.values(), settings, config)
    sums = Sums.opened(folder, shard, key, [*dict.fromkeys(source.values())], d_model)
    items = _items(sequences, d_model, settings)
    mine = shard.parts(range(len(items)))
    with evaluating(reader.model), frozen(reader.model):
        for place, number in enumerate(mine):
            batch, block = items[number]
            wanted = torch.stack([dimensions(rank, d_model, settings)[block] for rank, _ in batch])
            if place >= sums.done:
                texts = [sequences[each] for _, each in batch]
                gradients = _gradients(reader, texts, wanted, sums.points, settings.skip, smaller)
                sums.add(gradients, wanted, torch.tensor([rank % 2 for rank, _ in batch]))
                sums.finish(place + 1, is_last=place + 1 == len(mine))
            tokens = sum(len(sequences[each]) for _, each in batch) * wanted.shape[1]
            advance(wanted.numel(), tokens if place >= sums.first else 0)
    if left := sums.missing([len(Shard(n, shard.count).parts(range(len(items)))) for n in range(shard.count)]):
        return left
    sums.gather()
    dtype, n_layers = precision(reader.model.dtype), len(decoder_layers(model))
    lenses = [FittedLens(at, n_layers) for at in sums.jacobians(source, dtype)]
    return Fitted(lenses[0], (lenses[1], lenses[2]))


def check(
    model: nn.Module, sequences: Sequence[Ids], points: Sequence[HookPoint], d_model: int, settings: Settings
) -> None:
    """Raise InputError for a model, sequences or hook points that can't be fitted."""
    if not points:
        raise InputError("There is no hook point to fit: the last layer's output needs no map. Add sites.")
    if short := [each for each in sequences if len(each) < settings.skip + 2]:
        raise InputError(f"A sequence has {counted(len(short[0]), 'token')}, but needs {settings.skip + 2} or more.")
    if len(sequences) < 2:
        raise InputError(
            f"A Jacobian lens needs 2 sequences or more of at least {settings.skip + 2} tokens to fit on, but there "
            f"{'is one' if sequences else 'are none'}. Give more or longer texts, or lower --skip."
        )
    probes = d_model if settings.probes is None else settings.probes
    if (len(sequences) // 2) * probes < d_model:
        raise InputError(
            f"{len(sequences)} sequences with {counted(probes, 'probe')} each don't reach all {d_model} dimensions "
            f"twice. Use --probes {-(-d_model // (len(sequences) // 2))} or more, or more texts."
        )
    if has_offloaded(model):
        raise InputError(
            "A Jacobian lens needs all layers at once for its gradients, but --device-map offloads some weights. Use "
            "more or larger GPUs, a smaller model, or --dtype bfloat16."
        )
    check_memory(len({source_of(inside(model).config, point) for point in points}), len(points), d_model)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no weight requires a gradient, which saves memory and time."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def number_of_gradients(sequences: int, d_model: int, settings: Settings) -> int:
    """How many backward directions a fit takes: output dimensions, over all sequences."""
    return sequences * min(d_model, settings.probes or d_model)


def _items(sequences: Sequence[Ids], d_model: int, settings: Settings) -> list[tuple[list[tuple[int, int]], slice]]:
    """The work in pieces: a batch of sequences as pairs (rank in random order, number), and a block of gradients.

    Sequences of about the same length are batched, the longest first.
    """
    shuffled = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    ranked = sorted(enumerate(shuffled), key=lambda pair: -len(sequences[pair[1]]))
    batches = [ranked[first : first + BATCH] for first in range(0, len(ranked), BATCH)]
    blocks = [slice(first, first + BLOCK) for first in range(0, number_of_gradients(1, d_model, settings), BLOCK)]
    return [(batch, block) for batch in batches for block in blocks]


def _key(sequences: Sequence[Ids], sources: Iterable[HookPoint], settings: Settings, config: PreTrainedConfig) -> str:
    """A digest of all that decides the sums of a fit, apart from the weights."""
    asked = [*map(list, sequences), sorted(map(str, sources)), vars(settings), BATCH, BLOCK, config.model_type]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _gradients(
    reader: Reader,
    texts: Sequence[Ids],
    wanted: Int[Tensor, "batch some"],
    points: Sequence[HookPoint],
    skip: int,
    smaller: Callable[[int], None],
) -> Float[Tensor, "points batch some d_model"]:
    """The gradients of output dimensions, summed over target positions and averaged over source positions.

    A single forward pass serves all dimensions, and a backward pass gives one dimension of every text at all points.
    """

    def part(rows: slice) -> Tensor:
        states, final = _states(reader, texts[rows], points)
        used = _used([len(text) for text in texts[rows]], final, skip)
        weights = used.to(precision(final.dtype)) / used.sum(1, keepdim=True)
        found: list[Tensor] = []
        for column in wanted[rows].to(final.device).unbind(1):
            at = column.view(-1, 1, 1).expand(-1, final.shape[1], 1)
            cotangent = torch.zeros_like(final).scatter_(2, at, used.to(final.dtype).unsqueeze(-1))
            grads = _backward(final, states, cotangent)
            means = [torch.einsum("bt,btd->bd", weights.to(grad.device), grad.to(weights.dtype)) for grad in grads]
            found.append(torch.stack([mean.to(final.device) for mean in means]))
        return torch.stack(found, 2).cpu()

    return torch.cat(in_halves(part, len(texts), smaller), 1)


def _states(
    reader: Reader, texts: Sequence[Ids], points: Sequence[HookPoint]
) -> tuple[dict[HookPoint, Tensor], Float[Tensor, "batch seq d_model"]]:
    """The live states of a batch at `points`, and the last layer's output; texts are padded on the right.

    Causal attention and recurrences hide the padding from real tokens. Raises InputError for a module whose output is
    off the graph, because the derivative through it would be lost silently.
    """
    last, known = HookPoint(reader.n_layers - 1, "resid_post"), layer_sites(reader.model.config)
    modules = [HookPoint(layer, site) for layer in known for site in ("attn_out", "mlp_out") if site in known[layer]]
    seen: dict[HookPoint, Tensor] = {}

    def visit(point: HookPoint, hidden: Tensor) -> None:
        if point in wanted:
            if not hidden.requires_grad:
                hidden.requires_grad_(True)  # the graph begins here
            seen[point] = hidden
        elif seen and not hidden.requires_grad and point.layer > next(iter(seen)).layer:
            raise InputError(
                f"{point} passes no gradient on, so this model has no Jacobian. Load weights that aren't quantized, or "
                "use another --attn-implementation."
            )

    wanted = {*points, last}
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    with torch.enable_grad(), alone(reader.model, [len(text) for text in texts]):
        reader.run(
            [*dict.fromkeys([*modules, *points, last])],
            visit,
            input_ids=ids.to(device_of(reader.model)),
            use_cache=False,
        )
    check_visits([*points, last], dict.fromkeys(seen, 1))
    return {point: seen[point] for point in points}, seen[last]


def _used(lengths: Sequence[int], final: Float[Tensor, "batch seq d_model"], skip: int) -> Bool[Tensor, "batch seq"]:
    """Which positions count: all of a text but the first `skip` and the last."""
    place = torch.arange(final.shape[1], device=final.device)
    return (place >= skip) & (place < torch.tensor(lengths, device=final.device).unsqueeze(1) - 1)


def _backward(final: Tensor, states: Mapping[HookPoint, Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """The gradient at each state. Raises InputError if there is none, because a layer can't run backwards."""
    try:
        grads = torch.autograd.grad(final, [*states.values()], cotangent, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if not isinstance(error, NotImplementedError) and "does not require grad" not in str(error):
            raise
        raise InputError(
            f"A layer of this model can't run backwards ({first_line(error)}), so it has no Jacobian. Load weights "
            "that aren't quantized, or use another --attn-implementation."
        ) from error
    for point, grad in zip(states, grads, strict=True):
        if grad is None:
            raise InputError(f"The last layer's output doesn't depend on {point}. Leave its site out of --sites.")
    return grads
