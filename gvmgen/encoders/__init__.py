"""The frozen models and ffmpeg: used by `gvm-prep encode` and by `gvm-gen`, so that both see the same numbers."""
