"""Model types that can't have a row, because no single vector per token is what their modules add to."""

SEVERAL = (
    "its layers carry several vectors per token that they mix, so there is no single residual stream; "
    "support for it would first need a definition of one"
)

REFUSED: dict[str, str] = {
    "deepseek_v4": SEVERAL,
    "gemma3n": SEVERAL,
    "gemma3n_text": SEVERAL,
    "glm5_next": SEVERAL,
    "hy_v4": SEVERAL,
    "qwen4_exp": SEVERAL,
    "qwen4_exp_text": SEVERAL,
    "minimax": "its norms change the residual stream itself, which then isn't the sum of what its modules add",
}
"""`config.model_type` -> why it isn't supported."""
