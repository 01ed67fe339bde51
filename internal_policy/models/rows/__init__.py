"""The rows of all families. To add a family, add its row to one of the files of this folder."""

from internal_policy.models.family import Family
from internal_policy.models.rows import dense, experts, gemma4, hybrid, llama, older, parallel, vision

FAMILIES: dict[str, Family] = {
    **llama.ROWS,
    **dense.ROWS,
    **experts.ROWS,
    **parallel.ROWS,
    **older.ROWS,
    **vision.ROWS,
    **gemma4.ROWS,
    **hybrid.ROWS,
}
"""Name of a row, which is its `config.model_type` unless the row gives another -> the row.

`internal-policy families` and tests/models/test_families.py prove every row on a tiny random model.
A model's name doesn't tell its family: DeepSeek-Math-7B and DeepSeek-R1-Distill-Llama-8B are llama,
DeepSeek-R1-Distill-Qwen-7B is qwen2, and Pythia is gpt_neox.
"""
