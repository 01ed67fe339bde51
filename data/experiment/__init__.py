"""Compare BuPO with GRPO and related methods under equal conditions."""
