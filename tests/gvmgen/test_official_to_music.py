"""An official checkpoint, as its authors' code would write it, composes for a video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml

import gvmgen
from gvmgen.config import model_config
from gvmgen.encoders.presets import POCKET_DIR
from gvmgen.formats import VISUAL, audiocraft_rules, transformation_rules
from gvmgen.model import GVMGen
from shards.spec import SAMPLE_RATE
from tests import media

SETTINGS = """
codebooks_pattern: {modeling: delay, delay: {delays: [0, 1, 2, 3]}}
conditioners:
  visual_content:
    video:
      is_qformer: true
      qformer: {query_num: 16, query_type: mean, layer_norm_eps: 1e-12, hidden_dropout_prob: 0.1,
                qformer_layers: 6, cross_attention_frequency: 2}
fuser: {cross_attention_pos_emb: false, cross: [visual_content], prepend: [], sum: []}
"""


def write_official(model: GVMGen, folder: Path) -> None:
    """The import backwards."""
    config, ours, theirs = model.config, model.state_dict(), {}
    for rule in transformation_rules(config) + audiocraft_rules(config):
        whole = torch.cat([ours[target] for target in rule.targets])
        parts = (whole.t() if rule.is_transposed else whole).chunk(len(rule.sources))
        theirs.update({name: part.clone() for name, part in zip(rule.sources, parts, strict=True)})
    theirs[VISUAL + "conv1.weight"] = torch.zeros(3)  # of the frozen CLIP
    sizes = {
        "n_q": config.num_codebooks,
        "card": config.codebook_size,
        "dim": config.dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "hidden_scale": config.feed_forward_scale,
    }
    settings = yaml.safe_load(SETTINGS) | {"transformer_lm": sizes}
    torch.save({"best_state": theirs, "xp.cfg": yaml.safe_dump(settings)}, folder / "state_dict.bin")


@pytest.mark.skipif(
    not (POCKET_DIR / "clip").is_dir(), reason="the pocket encoders are not in the package yet"
)
def test_an_official_checkpoint_composes_for_a_video(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_official(GVMGen(model_config("pocket")), tmp_path)
    video = media.make_numbered(
        tmp_path / "video.mp4", media.constant_times(1.0, Fraction(25)), frame_rate=Fraction(25)
    )
    composer = gvmgen.GVMGen.load(str(tmp_path))
    assert not composer.model.config.frame_positions
    assert composer.score(video).waveform.shape == (SAMPLE_RATE,)
