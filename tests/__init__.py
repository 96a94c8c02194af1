"""Ours is the `tests` that is imported: a package of audiocraft's requirements installs one, too."""
