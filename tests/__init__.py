"""Makes ours the `tests` that is imported: a package of audiocraft's requirements installs one of that name."""
