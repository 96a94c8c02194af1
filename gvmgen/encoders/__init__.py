"""The frozen models and ffmpeg: used by `gvm-prep encode` and by `gvm-gen`, so both see the same numbers.

The package itself loads no torch: `presets` and `media` need none; import `video` and `audio` where used.
"""

from gvmgen.encoders.fingerprint import encoder_fingerprint

__all__ = ["encoder_fingerprint"]
