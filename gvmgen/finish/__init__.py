"""From composed samples to a finished file: ending, loudness, formats, films. ffmpeg and NumPy; no torch."""
