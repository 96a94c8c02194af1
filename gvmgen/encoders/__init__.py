"""The frozen models and ffmpeg: used by `gvm-prep encode` and by `gvm-gen`, so both see the same numbers."""
