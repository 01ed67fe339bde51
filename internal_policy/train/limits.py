"""The values that fields of the trainer's configuration may have."""

import math

COUNT, ABOVE_0, FROM_0, SHARE = (1, 2**31 - 1), (math.nextafter(0, 1), math.inf), (0, math.inf), (0, 1)
RANGES: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "steps_per_generation": COUNT,
    "generation_batch_size": COUNT,
    "num_generations": COUNT,
    "num_generations_eval": COUNT,
    "num_iterations": COUNT,
    "max_completion_length": COUNT,
    "save_total_limit": COUNT,
    "vllm_max_model_length": COUNT,
    "vllm_tensor_parallel_size": COUNT,
    "ddp_timeout": COUNT,
    "pad_to_multiple_of": COUNT,
    "lora_rank": COUNT,
    "lora_alpha": COUNT,
    "switch_every": COUNT,
    "switch_below": (-1, 1),
    "num_train_epochs": ABOVE_0,
    "save_steps": ABOVE_0,
    "logging_steps": ABOVE_0,
    "learning_rate": ABOVE_0,
    "layer_lr_scale": ABOVE_0,
    "adam_epsilon": ABOVE_0,
    "temperature": ABOVE_0,
    "repetition_penalty": ABOVE_0,
    "delta": ABOVE_0,
    "weight_decay": FROM_0,
    "warmup_steps": FROM_0,
    "max_grad_norm": FROM_0,
    "beta": FROM_0,
    "resample": (0, 2**31 - 1),
    "epsilon": FROM_0,
    "epsilon_high": FROM_0,
    "top_k": FROM_0,
    "dataloader_num_workers": FROM_0,
    "top_p": (math.nextafter(0, 1), 1),
    "min_p": SHARE,
    "top_entropy_quantile": SHARE,
    "vllm_gpu_memory_utilization": SHARE,
    "adam_beta1": (0, math.nextafter(1, 0)),
    "adam_beta2": (0, math.nextafter(1, 0)),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
}
"""Field -> its smallest and largest allowed value."""
CHOICES = {
    "loss_type": ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
    **dict.fromkeys(
        ("log_level", "log_level_replica"), ("passive", "debug", "info", "warning", "error", "critical", "detail")
    ),
}
"""Field -> its allowed values, where TRL's type is plain text and the value is only checked during training."""
