"""The frozen models and ffmpeg: used by `gvm-prep encode` and by `gvm-gen`, so both see the same numbers.

The package itself loads nothing heavy: `media` and `presets` are free of torch; import `video`, `audio`
and `fingerprint` where they are used.
"""
