"""The on-disk contract between `gvm-prep encode` and `gvm-train`: what a shard is, written and read. No torch."""
