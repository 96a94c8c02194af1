"""What a command shows while it works. No torch."""

from __future__ import annotations

import sys

from tqdm import tqdm

SLOW_BAR_S = 10.0  # seconds between two lines of a progress bar that goes into a file


class StageBar:
    """One progress bar on stderr that shows each stage of the work in turn."""

    def __init__(self) -> None:
        interval = 0.1 if sys.stderr.isatty() else SLOW_BAR_S
        self.bar = tqdm(
            total=1,
            unit="",
            mininterval=interval,
            bar_format="{desc} {percentage:3.0f} %|{bar}| {n}/{total} [{elapsed}<{remaining}]",
        )
        self.stage = ""

    def __enter__(self) -> StageBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage = stage
            self.bar.set_description_str(f"{stage:<9}", refresh=False)
            self.bar.reset(total)
        self.bar.update(done - self.bar.n)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.write(f"gvm-gen: {line}", file=sys.stderr)
