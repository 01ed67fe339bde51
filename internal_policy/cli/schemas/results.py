"""Fields of the documents about responses, runs and what lies in the cache."""

from internal_policy.cli.schemas.common import ALL, BYTES, FINDINGS, LAYER, MEAN, SITE
from internal_policy.cli.schemas.field import Field, named, part, rows, text

FORECAST = {
    "model": text("name of the model"),
    "family": text("row of `families` that the model is read with"),
    "layers": Field("integer[]", "layers"),
    "sites": Field("string[]", "sites"),
    "readouts": Field("string[]", "readouts"),
    "measures": Field("string[]", "measures"),
    "rollouts": Field("integer", "number of responses"),
    "response_tokens?": Field("integer", "tokens of given responses"),
    "response_tokens_at_most?": Field("integer", "tokens of responses that will be sampled"),
    "measured_tokens?": Field("integer", "measured tokens, if not all"),
    "measured_tokens_at_most?": Field("integer", "measured tokens, if not all"),
    "prompt_tokens?": Field("integer", "tokens of the prompts"),
    "hidden_states_per_token": Field("integer", "hidden states that are read at a token"),
    "unembeddings_per_token": Field("integer", "policies that are computed at a token"),
    "gflop_per_token": Field("number", "operations for them"),
    "disk_bytes_at_most": Field("integer", "size on disk, before compression"),
    "device": text("where it would run"),
    "dtype": text("type of the weights"),
    "batch_size": Field("integer", "responses at a time"),
    "weights_bytes": Field("integer", "memory of the weights"),
    "sampling_bytes_at_most": Field("integer", "memory of sampling"),
    "hidden_states_bytes_at_most": Field("integer", "memory of hidden states"),
    "kernel_bytes_at_most": Field("integer", "memory of the kernel"),
    "tables_bytes_at_most": Field("integer", "memory of the tables"),
    "memory_bytes_at_most": Field("integer", "memory at the peak"),
    "free_bytes": Field("integer", "memory that the device has free"),
    "fits": Field("boolean", "whether that is enough"),
    "remedy": Field("string|null", "what to do if it isn't"),
    "seconds?": Field("number", "estimated time"),
    "seconds_at_most?": Field("number", "estimated time, for responses as long as allowed"),
    "scan": text("folder that it would be written to"),
    "cached": Field("boolean", "whether it was measured before"),
}
"""What `scan --dry-run` prints."""
GENERATED = {
    "output": text("file that was written"),
    "at": text("the policy that answered: final, or a hook point"),
    "rollouts": Field("integer", "number of responses"),
    "tokens": Field("integer", "number of response tokens"),
    "reward": Field("number|null", "mean reward; null if none could be marked"),
    "finished": Field("number", "share of responses that ended by themselves"),
}
EVALUATED = {
    "output": text("folder that was written"),
    "label": text("what was evaluated"),
    "evaluated": rows(
        "each set of problems",
        {
            "problems": text("name of the set"),
            "number": Field("integer", "number of problems"),
            "samples": Field("integer", "responses to each"),
            "marked": Field("boolean", "whether any response could be marked"),
            "avg": part("Avg@K, a share, with its 95% Wilson interval over problems", MEAN),
            "pass_at_k": named("k -> Pass@k, a share", "number|null"),
            "cut": Field("number", "share of responses that reached the length limit"),
        },
    ),
}
"""What `evaluate` prints."""
SIDE = {"folder": text("its folder"), "label": text("what was evaluated")}
PAIRED = {
    "a": part("the first evaluation", SIDE),
    "b": part("the second evaluation", SIDE),
    "samples": Field("integer", "responses to each problem"),
    "compared": rows(
        "each set of problems",
        {
            "problems": text("name of the set"),
            "number": Field("integer", "number of problems"),
            "differences": rows(
                "Pass@k of B minus that of A, shares",
                {
                    "k": Field("integer", "responses that a problem gets"),
                    "a": Field("number", "Pass@k of A"),
                    "b": Field("number", "Pass@k of B"),
                    "difference": Field("number", "B minus A"),
                    "low": Field("number|null", "lower end of its 95% interval"),
                    "high": Field("number|null", "upper end"),
                },
            ),
            "avg_p": Field("number|null", "p value of the difference of Avg@K"),
            "pass_p": Field("number|null", "p value of the difference of Pass@K"),
            "solved": named("how many problems both, only_a, only_b and neither solve", "integer"),
        },
    ),
    "findings": FINDINGS,
    "caveats": Field("string[]", "what else differs between the two"),
}
"""What `evaluate A B --paired` prints."""
DESIGN = {"paired": Field("number|null", "both models answer the same problems")}
DESIGN |= {"unpaired": Field("number|null", "each model has problems of its own")}
PLAN = {
    "problems": Field("integer", "number of problems"),
    "samples": Field("integer", "responses to each"),
    "power": Field("number", "chance to detect a real difference"),
    "level": Field("number", "level of the test"),
    "between": Field("number", "variance between problems"),
    "within": Field("number", "variance within a problem"),
    "shared": Field("number", "variance that is shared by both models"),
    "smallest": rows(
        "smallest difference of Avg@K that can be detected, a share",
        {"samples": Field("integer", "responses to each"), **DESIGN},
    ),
    "needed": rows(
        "problems that a difference needs", {"points": Field("number", "the difference in percentage points"), **DESIGN}
    ),
    "source": text("where the variances come from"),
}
"""What `evaluate --plan` prints."""
EXAMS = {
    "step": Field("integer", "step after which the exam was held; 0 is the untrained model"),
    "problems": text("name of the set"),
    "number": Field("integer", "number of problems"),
    "samples": Field("integer", "responses to each"),
    **{
        f"{name}{end}": Field("number|null", f"{meaning}{said}")
        for name, meaning in (("avg_at_k", "Avg@K"), ("pass_at_k", "Pass@K"), ("change", "Avg@K minus the first"))
        for end, said in (("", ""), ("_low", ", lower end of its 95% interval"), ("_high", ", upper end"))
    },
    "cut": Field("number|null", "share of responses that reached the length limit"),
    "correct": Field("integer[]", "correct responses to each problem"),
    "seconds": Field("number|null", "time of the exam"),
}
TRAINED = {
    "run": text("folder of the run"),
    "model": text("folder of the trained model"),
    "best_model": Field("string|null", "folder of the model of the best exam, if it was kept"),
    "seconds": Field("number", "time of the run"),
    "time": named("activity -> its share of the time", "number"),
    "steps": Field("object[]", "means over each tenth of the run: steps, trained, reward, entropy, clip_fraction, ..."),
    "exams": rows("each exam", EXAMS),
}
"""What `train` prints."""
ITEM = {
    "kind": text("scan, ablation, alignment, run, study, evaluation or sample"),
    "name": text("what to call it in other commands"),
    "bundled": Field("boolean", "whether it comes with the package"),
    "model": Field("string|null", "name of the model"),
    "rollouts": Field("integer|null", "number of responses"),
    "rollouts_at_most?": Field("integer|null", "responses that an unfinished scan will have"),
    "created": Field("string|null", "when it was measured, UTC"),
    "problem": Field("string|null", "what is missing or wrong, and what to do about it"),
    "state": text("finished, unfinished, running or broken"),
    "tokens?": Field("integer|null", "number of response tokens (scan, ablation)"),
    "reader?": text("library that read the hidden states (scan)"),
    "readouts?": Field("string[]", "readouts (scan)"),
    "source?": Field("any", "where its problems or responses come from"),
    "modules?": Field("string[]|null", "what was removed (ablation)"),
    "at?": Field("string|null", "the policy that answered (evaluation)"),
    "samples?": Field("integer|null", "responses to each problem (evaluation)"),
    "method?": text("how it was trained (run)"),
    "targets?": Field("string[]", "hook points that were trained (run)"),
    "steps?": Field("integer", "steps done (run), or steps that were scanned (study)"),
    "first?": Field("integer", "first step (study)"),
    "last?": Field("integer", "last step (study)"),
    "trained_model?": Field("string|null", "folder of the trained model (run)"),
    "checkpoints?": Field("integer", "number of checkpoints (run)"),
    "folder": text("its folder"),
    "bytes": BYTES,
    "changed": text("when it was last written, UTC"),
}
"""A row of `ls`."""
RUN = {
    **ITEM,
    "best_model": Field("string|null", "folder of the model of the best exam, if it was kept"),
    "schedule": rows(
        "what was trained when",
        {
            "target": text("hook point, or final"),
            "first": Field("integer", "first step"),
            "last": Field("integer", "last step"),
        },
    ),
    "findings": FINDINGS,
    "progress": rows(
        "means over the first and the last tenth of the steps",
        {
            "measure": text("what was measured"),
            **{
                f"{end}_{name}": Field(kind, f"{meaning} of the {end} tenth")
                for end in ("first", "last")
                for name, kind, meaning in (
                    ("from", "integer", "first step"),
                    ("to", "integer", "last step"),
                    ("mean", "number|null", "mean"),
                )
            },
        },
    ),
    "layers": Field(
        "object[]", "a row for each layer: `layer`, and a measure at the first and the last scan per column"
    ),
    "exams": rows("each exam", EXAMS),
    "evaluations": rows(
        "Pass@k, a share",
        {"label": text("what was evaluated"), "problems?": text("the set"), "k": Field("integer", "k"), **MEAN},
    ),
}
"""What `show` prints of a training run."""
REMOVED = {**ITEM, "kept": Field("string[]", "files of others that stay in the folder")}
FAULT = {
    "file": text("name of the file"),
    "problem": text("what is wrong: missing, short, altered, extra, ..."),
    "detail": text("the same in words; may be empty"),
    "copy_of": Field("string|null", "file that it is a copy of"),
}
VERIFIED = {
    "kind": text("scan, ablation, alignment, run, evaluation or lens"),
    "name": text("its name in `ls`"),
    "folder": text("its folder"),
    "files": Field("integer", "how many files were checked"),
    "bytes": BYTES,
    "rollouts": Field("integer|null", "number of responses"),
    "damaged": rows("each file that isn't as it was written", FAULT),
    "remedy": Field("string|null", "what to do"),
    "repaired": part(
        "what `--repair` did",
        {
            "files": Field("string[]", "files that were written again or removed"),
            "differing": Field("string[]", "those that differ from before"),
        },
        optional=True,
    ),
}
SENT = {
    "files": Field("string[]", "names of the files in the repository"),
    "bytes": BYTES,
}
PUSHED = {
    "repository": text("name of the repository"),
    "address": text("its address with the commit, which other commands take"),
    "commit": text("the commit"),
    "url": text("its page"),
    "private": Field("boolean", "whether it is private"),
    "license": Field("string|null", "licence of the prompts and responses"),
    **SENT,
    "removed": Field("string[]", "files of an earlier upload that were removed"),
}
"""What `push` prints."""
CARD = {"repository": text("name of the repository"), "card": text("file of the card"), **SENT}
"""What `push --dry-run` prints."""
COMPARED = {
    "a": text("folder or address of the scan that is subtracted"),
    "b": text("folder or address of the scan that it is subtracted from"),
    "readout": text("readout of A"),
    "readout_b": text("readout of B"),
    "measure": text("what is compared"),
    "rollouts": Field("integer", "responses with the same tokens in both"),
    "caveats": Field("string[]", "what else differs between the scans"),
    "findings": text("which layers differ, in a sentence"),
    "differences": rows(
        "a row for each layer and site",
        {
            "layer": LAYER,
            "site": SITE,
            "a": Field("number|null", "mean of A"),
            "b": Field("number|null", "mean of B"),
            "difference": Field("number|null", "B minus A"),
            "low": Field("number|null", "lower end of its 95% interval"),
            "high": Field("number|null", "upper end"),
            **ALL,
            "significant": Field("boolean", "whether it differs, with 95% confidence for all rows at once"),
        },
    ),
}
CHECKED = {
    "scan": text("folder or address of the scan"),
    "readout": text("readout"),
    "verdicts": rows(
        "each claim",
        {
            "claim": text("its short name"),
            "title": text("its name"),
            "verdict": text("whether it holds, in a word or two"),
            "reason": text("why, in a sentence"),
            "tested": Field("integer", "controls under which it was tested"),
            "untested": Field("integer", "controls that the scan didn't measure"),
        },
    ),
    "results": rows(
        "each claim under each control",
        {
            "claim": text("claim"),
            "control": text("control"),
            "outcome": text("survives, fails, untested, ..."),
            "text": text("the numbers in words"),
            "value": Field("number|null", "the number"),
        },
    ),
    "controls": rows(
        "each control",
        {
            "control": text("its short name"),
            "title": text("its name"),
            "rule": text("what it does"),
            "tested": Field("boolean", "whether the scan measured it"),
            "note": text("a remark; may be empty"),
        },
    ),
    "options": Field("string[]", "options of `scan` that would measure the rest"),
    "command": Field("string|null", "command that would; empty if nothing is missing"),
}
