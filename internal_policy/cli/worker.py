"""Run one scan command after another in a process that keeps the model loaded, for the dashboard.

A request is a line of JSON on stdin: `{"words": ["scan", ...], "text": ...}` with the prompt or text that the command
reads, or `{"stop": true}`. Events are lines of JSON on stdout. The process ends when stdin closes, which also happens
when the dashboard is killed, and after a while without requests.
"""

import gc
import json
import os
import queue
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from internal_policy.cli import opening, parsing, scan, work
from internal_policy.cli.commands import COMMANDS
from internal_policy.cli.prepared import Prepared
from internal_policy.errors import InputError, counted
from internal_policy.models import naming
from internal_policy.scans import store
from internal_policy.scans.positions import recorded

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from internal_policy.scans.reader import Reader
    from internal_policy.scans.selection import Selection
    from internal_policy.tasks.prompts import Ids
    from internal_policy.tasks.rollouts import Rollout

IDLE = 600.0
"""Seconds without a request after which the process ends, to free its memory."""
SHARE = 4
"""The grid is drawn again after this many times the seconds that its last drawing took."""
OCCUPIED = "Another dashboard on this machine has a model loaded for its prompts. Close its tab, then ask again."

Tell = Callable[..., None]
"""Sends an event: keyword arguments that JSON can hold."""


class Stopped(Exception):
    """The work was stopped by a request."""


@dataclass(frozen=True)
class Warm(opening.Opener):
    """Our own hooks on the model that was used last, which stays loaded."""

    reader: str = "hooks"
    remote: bool = False
    tell: Tell = lambda **_: None
    """Called when a model is being loaded."""
    kept: "dict[str, Any]" = field(default_factory=dict)
    """The model's identity, configuration, tokenizer and reader, and the texts of its token ids."""

    def holding(self, inputs: Prepared) -> Prepared:
        """The inputs with the configuration and tokenizer that are loaded already, if they are of the same model."""
        identity = f"{inputs.checkpoint.place} {inputs.identity}"
        if self.kept.get("identity") != identity:
            self.kept.clear()  # before the next model takes its memory
            gc.collect()
            self.tell(state="loading")
            self.kept.update(config=inputs.config, tokenizer=inputs.tokenizer, identity=identity)
        return inputs.holding(self.kept["config"], self.kept["tokenizer"])

    def open(self, inputs: Prepared) -> "Reader":
        """The reader, loaded when it is first needed. Raises InputError."""
        if "reader" not in self.kept:
            self.tell(state="loading")
            self.kept["reader"] = super().open(inputs)
        self.tell(state="measuring" if inputs.is_given else "answering")
        return self.kept["reader"]

    def texts(self) -> "pd.DataFrame":
        """The text of every token id."""
        from internal_policy.models.vocabulary import vocabulary

        if "texts" not in self.kept:
            self.kept["texts"] = vocabulary(self.kept["tokenizer"], self.kept["reader"].unembedding.out_features)
        return self.kept["texts"]


class Progress:
    """Sends what a scan has sampled and measured so far, until it is stopped."""

    def __init__(self, inputs: Prepared, warm: Warm, selection: "Selection", stop: threading.Event) -> None:
        """`selection` is what the scan measures."""
        self.inputs, self.warm, self.selection, self.stop = inputs, warm, selection, stop
        self.pieces: list[pa.Table] = []
        self.next = 0.0
        """The time of the next drawing."""

    def on_token(self, responses: "Sequence[Ids]") -> None:
        """Send the response so far. Raises Stopped."""
        from internal_policy.tasks.rollouts import decoded

        if self.stop.is_set():
            raise Stopped
        self.warm.tell(response=decoded(self.inputs.tokenizer, responses[0]), tokens=len(responses[0]))

    def on_piece(self, rollouts: "Sequence[Rollout]", piece: "pa.Table") -> None:
        """Send what is measured so far, as the payload of a lens grid. Raises Stopped."""
        from internal_policy.look.lens_grid.payload import payload
        from internal_policy.look.view import View
        from internal_policy.models.families import layer_sites
        from internal_policy.scans import partial
        from internal_policy.scans.scan import numbered
        from internal_policy.scans.selection import lacking

        if self.stop.is_set():
            raise Stopped
        self.pieces.append(piece)
        start = time.monotonic()
        if start < self.next:
            return
        reader, readouts = self.warm.kept["reader"], self.selection.readouts
        record = {
            "model": naming.title(self.inputs.checkpoint.name),
            "n_layers": reader.n_layers,
            "d_vocab": reader.unembedding.out_features,
            "dtype": str(reader.model.dtype).removeprefix("torch."),
            "selection": recorded(self.selection),
            "lacking": lacking(self.selection, layer_sites(reader.model.config)),
            "rollouts": len(rollouts),
        }
        tables = partial.tables(record, numbered(rollouts), self.pieces, self.warm.texts())
        measured = {name for piece in self.pieces for name in piece["readout"].unique().to_pylist()}
        self.warm.tell(
            state="measuring",
            response=rollouts[0].response,
            tokens=len(rollouts[0].response_ids),
            grid=payload(View(tables, readouts[0]), 0, [name for name in readouts if name in measured]),
            share=sum(map(len, self.pieces)) / len(tables.arrow["policies"]),
        )
        self.next = time.monotonic() + SHARE * (time.monotonic() - start)


def check(inputs: Prepared, text: str) -> None:
    """Raise InputError for a prompt or text that the model can't read, before its weights are loaded."""
    from internal_policy.models.passes import positions
    from internal_policy.tasks.problems import Message, Problem
    from internal_policy.tasks.prompts import encode_problem, split_text

    sampling, longest, name = inputs.sampling, positions(inputs.config), Path(inputs.checkpoint.name).name
    if not text.strip():
        raise InputError("The prompt is empty. Type a prompt or a text first.")
    if inputs.is_given:
        prompt, response = split_text(inputs.tokenizer, text, sampling.chat)
        if (n := len(prompt) + len(response)) > longest:
            raise InputError(f"The text has {counted(n, 'token')}, but {name} reads at most {longest:,}. Shorten it.")
        return
    problem = Problem((Message(role="user", content=text),), None)
    n, most = len(encode_problem(inputs.tokenizer, problem, sampling.chat)), sampling.max_new_tokens
    if n + most > longest:
        raise InputError(
            f"The prompt has {counted(n, 'token')} and the response may have {most:,}, but {name} reads at most "
            f"{longest:,} in all. Shorten the prompt, or lower the maximum of tokens."
        )


def answer(words: Sequence[str], text: str, warm: Warm, stop: threading.Event) -> None:
    """Run a scan command, and send its progress and the scan's folder. Raises InputError and Stopped."""
    from internal_policy.cli import progress

    start = time.monotonic()
    sys.argv[:] = ["internal-policy", *words]  # the scan's record holds the command
    options = parsing.parse(COMMANDS, words)
    progress.quiet()
    inputs = warm.holding(scan.prepared(options))
    check(inputs, text)
    sent = Progress(inputs, warm, work.selection(options, inputs.config, [lens.name for lens in inputs.lenses]), stop)
    folder, cached = scan.scanned(options, inputs, warm, scan.Watch(sent.on_token, sent.on_piece))
    rollout = store.of_rollout(folder, "rollouts", 0, ["response", "response_ids"]).to_pylist()[0]
    warm.tell(
        state="done",
        scan=str(folder),
        response=rollout["response"],
        tokens=len(rollout["response_ids"]),
        cached=cached,
        seconds=time.monotonic() - start,
    )


def why(error: Exception) -> str:
    """An error in one sentence; its traceback is printed unless it is an InputError."""
    if isinstance(error, InputError):
        return str(error)
    traceback.print_exception(error)
    if "out of memory" in str(error) or "allocate memory" in str(error) or isinstance(error, MemoryError):
        return "There isn't enough memory. Try a shorter text or a smaller model."
    said = str(error).splitlines()[:1] or [""]
    return f"This failed ({type(error).__name__}: {said[0][:200]}). The dashboard's terminal shows where."


def _channel() -> TextIO:
    """The real stdout, for events only; whatever else is printed goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return out


def _listen(requests: "queue.Queue[dict[str, Any]]", stop: threading.Event) -> None:
    """Read requests from stdin, and end the process when it closes."""
    rest = b""
    while data := os.read(0, 65536):  # sys.stdin would stay locked while this thread reads it
        *lines, rest = (rest + data).split(b"\n")
        for request in map(json.loads, lines):
            if "stop" in request:
                stop.set()
            else:
                stop.clear()
                requests.put(request)
    os._exit(1)


def _alone() -> sqlite3.Connection:
    """Keep a second worker from starting; the system lets go of the lock however this process ends.

    Raises InputError if there is one.
    """
    path = store.root() / "prompts" / "worker.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")  # a file lock on every system, without writing anything
    except sqlite3.OperationalError as error:
        raise InputError(OCCUPIED if "locked" in str(error) else f"Can't lock {path} ({error}).") from error
    return lock


def main(idle: float = IDLE) -> None:
    """Answer requests until there are none for a while."""
    import psutil

    out, this = _channel(), psutil.Process()
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    stop = threading.Event()

    def tell(**event: Any) -> None:
        print(json.dumps({**event, "memory": this.memory_info().rss}), file=out)

    threading.Thread(target=_listen, args=(requests, stop), daemon=True).start()
    try:
        lock = _alone()
    except InputError as error:
        tell(state="failed", error=str(error))
        return
    warm = Warm(tell=tell)
    tell(state="ready")
    with suppress(queue.Empty):
        while True:
            request = requests.get(timeout=idle)
            try:
                answer(request["words"], request["text"], warm, stop)
            except Stopped:
                tell(state="stopped")
            except Exception as error:
                tell(state="failed", error=why(error))
    lock.close()


if __name__ == "__main__":
    main()
