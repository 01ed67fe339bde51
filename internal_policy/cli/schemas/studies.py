"""Fields of the documents about studies: series of checkpoints that were scanned over the same responses."""

from collections.abc import Mapping

from internal_policy.cli.schemas.common import ALL, LAYER, MEAN, SITE
from internal_policy.cli.schemas.field import Field, named, rows, text

AT: Mapping[str, Field] = {"step": Field("integer", "step of the training"), "layer": LAYER, "site": SITE, **MEAN}
STUDY = {
    "study": text("folder of the study"),
    "schema": Field("integer", "version of the file format"),
    "digest": text("12 digits that identify the settings"),
    "created": text("when it was begun, UTC"),
    "model": text("name of the series"),
    "source": text("where its checkpoints are"),
    "responses": text("where its responses come from"),
    "dtype": text("type of the weights"),
    "n_layers": Field("integer", "decoder layers"),
    "d_vocab": Field("integer", "size of the vocabulary"),
    "rollouts": Field("integer", "number of responses"),
    "tokens": Field("integer", "number of measured response tokens"),
    "selection": named("what was measured, as in a scan"),
    "lacking?": named("site -> layers that have no such site", "integer[]"),
    "steps": rows(
        "the steps that were scanned",
        {
            "step": Field("integer", "step of the training"),
            "name": text("name of the checkpoint"),
            "scan": Field("string|null", "name of its scan in `ls`, if a whole one was kept"),
        },
    ),
    "readout": text("readout of the numbers below"),
    "measure": text("measure of the numbers below"),
    "means": rows("mean of the measure at each step, layer and site", AT),
    "since_first": rows("its change since the first step, over the same responses", {**AT, **ALL}),
    "findings": text("what changed between the first step and the last, in sentences"),
}
"""What `show` and `scan --checkpoints` print of a study."""
SERIES = {
    "checkpoints": text("where the checkpoints are"),
    "skipped": Field("string[]", "why each incomplete checkpoint is left out"),
    "steps": rows(
        "the checkpoints that would be scanned",
        {
            "step": Field("integer", "step of the training"),
            "name": text("name of the checkpoint"),
            "place": text("folder or hub id"),
            "revision": text("commit of a hub model"),
        },
    ),
}
"""What `scan --checkpoints --dry-run` prints."""
