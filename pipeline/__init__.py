"""`gvm-prep`: from videos to a manifest, and from a manifest to shards."""
