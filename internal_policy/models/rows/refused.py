"""Model types that can't have a row, with the reason."""

SEVERAL = (
    "its layers carry several vectors per token that they mix, so there is no single residual stream; "
    "support for it would first need a definition of one"
)
DRAFTS = "it only drafts tokens for another Gemma 4 model, whose keys and values it reads"
NORMED = "its norms change the residual stream itself, which then isn't the sum of what its modules add"
SCALED = "its layers multiply the residual stream by learned weights before they add to it"
OMNI = (
    "it consists of several models, and only the thinker writes text; save the thinker with its tokenizer by "
    "`model.thinker.save_pretrained(FOLDER)`, and load that folder"
)

REFUSED: dict[str, str] = {
    "deepseek_v4": SEVERAL,
    "gemma3n": SEVERAL,
    "gemma3n_text": SEVERAL,
    "gemma4_assistant": DRAFTS,
    "gemma4_unified_assistant": DRAFTS,
    "glm5_next": SEVERAL,
    "hy_v4": SEVERAL,
    "qwen2_5_omni": OMNI,
    "qwen3_omni_moe": OMNI,
    "qwen4_exp": SEVERAL,
    "qwen4_exp_text": SEVERAL,
    "doge": SCALED,
    "gpt_neox_japanese": "its last layer adds a bias to attention's output outside of any module",
    "hrm_text": "it runs the same layers several times for each token",
    "inkling2_text": "its layers read learned mixtures of earlier states instead of one residual stream",
    "longcat_flash": "each of its layers has two attentions and three FFNs",
    "minimax": NORMED,
    "openai-gpt": NORMED,
    "zaya": SCALED,
}
"""`config.model_type` -> why it isn't supported."""
