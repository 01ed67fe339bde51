"""Parquet in, frames and figures out, without torch."""
