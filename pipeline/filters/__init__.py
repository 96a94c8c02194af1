"""Filters: each module has one public function that turns a segment's sound or frames into scores.

Scores go into the manifest; thresholds apply later (`keep.py`), so changing one's mind costs nothing.
"""
