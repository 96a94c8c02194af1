"""The on-disk contract between `gvm-prep encode` and `gvm-train`: a shard, written and read. No torch."""
