"""Makes heard what a run composes on the way (`gvm-train --samples-every`): WAV files, and TensorBoard.

    python tools/hear_samples.py runs/small [--follow]

Beside each `samples/step_…/KEY.npy` it puts a `.wav`; audio and spectrogram go into the run's tensorboard/
folder. Training itself loads no codec: this runs beside it, or later, or on another machine.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from gvmgen.console import run
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.media import write_waveform
from gvmgen.encoders.presets import encoder_config
from shards.spec import SAMPLE_RATE

LOOK_EVERY_S = 10.0
BINS, RANGE_DB = 256, 80.0  # of a spectrogram


def main(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more until interrupted.")] = False,
) -> None:
    settings = json.loads((run / "config.json").read_text())
    codec = AudioCodec.load(encoder_config(settings["train"]["preset"]))
    with SummaryWriter(str(run / "tensorboard" / "samples")) as board:
        while True:
            new = unheard(run)
            for path in new:
                typer.echo(hear(codec, path, board))
            board.flush()
            if not follow:
                if not new:
                    typer.echo(f"{run}: no sample is new; gvm-train --samples-every makes some")
                return
            time.sleep(LOOK_EVERY_S)


def unheard(run: Path) -> list[Path]:
    found = sorted(run.glob("samples/step_*/*.npy"))
    return [path for path in found if not path.with_suffix(".wav").exists()]


def hear(codec: AudioCodec, path: Path, board: SummaryWriter) -> Path:
    """Decode codes int16 [K, T]; returns the WAV file."""
    step = int(path.parent.name.removeprefix("step_"))
    codes = torch.from_numpy(np.load(path).astype(np.int64))
    waveform = codec.decode(codes[None])[0].cpu()  # [N]
    board.add_audio(path.stem, waveform.clamp(-1, 1), step, SAMPLE_RATE)
    board.add_image(f"{path.stem} spectrogram", spectrogram(waveform), step)
    wav = path.with_suffix(".wav")
    write_waveform(wav, waveform.numpy(), SAMPLE_RATE)
    return wav


def spectrogram(waveform: Tensor) -> Tensor:
    """[N] -> float [1, frequency, time], low at the bottom; white is the loudest, black 80 dB below."""
    size = 2 * BINS
    window = torch.hann_window(size)
    power = torch.stft(waveform, size, window=window, return_complex=True).abs().square()
    level = 10 * (power / power.max().clamp(min=1e-12)).clamp(min=1e-12).log10()
    return (1 + level / RANGE_DB).clamp(0, 1).flip(0)[None]


if __name__ == "__main__":
    run(lambda: typer.run(main), "hear_samples.py")
