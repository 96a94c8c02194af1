"""The decoder's step in C++: choice.py says when it serves, engine.py packs weights, build.py compiles."""
