"""Which families TransformerLens reads as our hooks do, as measured on the tiny model of every row."""

SAME = """
afmoe apertus arcee bitnet deepseek_v3 ernie4_5 ernie4_5_moe gemma gemma2 gemma3_text gemma4_text
gemma4_text_plain glm4_moe glm4_moe_lite glm_moe_dsa gpt_neox gpt_neox_sequential gpt_oss hunyuan_v1_dense
internlm3 iquestcoder jais2 jetmoe laguna llama llama4_text minimax_m2 ministral3 mistral mixtral nemotron
olmoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm vaultgemma youtu
"""
"""Rows whose hidden states under its names equal ours bit for bit (tests/readers/test_transformer_lens.py)."""
WITHOUT = """
bamba cohere cohere2 exaone4 falcon falcon_mamba flex_olmo granitemoehybrid granitemoehybrid_dense jamba lfm2
lfm2_moe mamba mamba2 nemotron_h olmo2 olmo3 olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next
recurrent_gemma rwkv stablelm_parallel zamba2
"""
"""Rows with layers for which TransformerLens lacks some of the names."""
OTHERWISE = """
bloom deepseek_v2 falcon_h1 falcon_one_norm falcon_sequential falcon_two_norms gemma4_text_experts glm glm4
gpt2 gpt_bigcode gpt_neo granite granitemoe mpt olmo phi3 starcoder2
"""
"""Rows that TransformerLens computes in another way, if only by rounding, or reads elsewhere."""
