"""Checkpoints of others: where their files lie, what sizes they state, how they name their tensors.

Official GVMGen checkpoints are in audiocraft's format; MusicGen comes in audiocraft's and in transformers'.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gvmgen.config import ModelConfig, Pooling
from gvmgen.encoders.presets import MissingWeightsError
from gvmgen.weights import refuse

AUDIOCRAFT_WEIGHTS = "state_dict.bin"
CONDITIONER = "condition_provider.conditioners.visual_content."
VISUAL = CONDITIONER + "clip.visual."

# CLIP below the feature transformation: the official code froze it, so it is OpenAI's, which open_clip loads
FROZEN_CLIP = re.compile(
    re.escape(VISUAL) + r"(class_embedding$|positional_embedding$|conv1\.|ln_pre\.|transformer\.)"
)
# what GVMGen has no place for in a MusicGen: text encoder, its projection, codec
OTHER_PARTS = re.compile(r"(text_encoder|audio_encoder|enc_to_dec_proj|condition_provider)\.")
TEXT_ATTENTION = re.compile(r".*\.(cross_attention|norm_cross|encoder_attn|encoder_attn_layer_norm)\.")

# audiocraft settings that would make another network of the same tensors
AUDIOCRAFT_SETTINGS: dict[str, Any] = {
    "activation": "gelu",
    "bias_attn": False,
    "bias_ff": False,
    "bias_proj": False,
    "causal": True,
    "kv_repeat": 1,
    "layer_scale": None,
    "norm": "layer_norm",
    "norm_first": True,
    "past_context": None,
    "positional_embedding": "sin",
    "positional_scale": 1,
    "qk_layer_norm": False,
    "qk_layer_norm_cross": False,
}
AUDIOCRAFT_SIZES = {
    "dim": "dim",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "feed_forward_scale": "hidden_scale",
    "num_codebooks": "n_q",
    "codebook_size": "card",
}
TRANSFORMERS_SETTINGS = {"activation_function": "gelu", "audio_channels": 1, "scale_embedding": False}
TRANSFORMERS_SIZES = {
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_codebooks": "num_codebooks",
    "codebook_size": "vocab_size",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of others holds."""

    where: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    def setting(self, path: str) -> Any:
        """A setting by its dotted path. Raises ValueError where it is not there."""
        value: Any = self.settings
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                raise ValueError(f"{self.where}: its configuration has no {path}")
            value = value[name]
        return value

    def refuse_other_settings(self, section: str, wanted: Mapping[str, Any]) -> None:
        """Raise ValueError where a setting of the section is stated and is another than the wanted one."""
        values = self.setting(section)
        others = [
            f"{name} is {values[name]!r}, wanted {value!r}"
            for name, value in wanted.items()
            if name in values and values[name] != value
        ]
        refuse(others, self.where)


def is_audiocraft(path: Path) -> bool:
    """Whether a path is audiocraft's `state_dict.bin`, or a folder that holds it."""
    return path.suffix == ".bin" or (path / AUDIOCRAFT_WEIGHTS).is_file()


def audiocraft_file(path: Path) -> Path:
    """A `state_dict.bin`, itself or the one in a folder."""
    return path / AUDIOCRAFT_WEIGHTS if path.is_dir() else path


def read_audiocraft(path: Path) -> Checkpoint:
    """An exported audiocraft checkpoint, mapped into memory, not copied; nothing of it is run."""
    file = audiocraft_file(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; an audiocraft checkpoint is a {AUDIOCRAFT_WEIGHTS}")
    try:
        package = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{file}: cannot be read as tensors and plain values: {reason}") from error
    if not isinstance(package, dict) or not {"best_state", "xp.cfg"} <= set(package):
        raise ValueError(f"{file}: is no exported audiocraft checkpoint, which holds best_state and xp.cfg")
    try:
        settings = yaml.safe_load(package["xp.cfg"])
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: its xp.cfg is no YAML: {error}") from error
    state = package["best_state"]
    # audiocraft's attention without `memory_efficient` keeps the same tensors one level deeper
    tensors = {name.replace(".mha.", "."): tensor for name, tensor in state.get("model", state).items()}
    return Checkpoint(str(file), settings, tensors)


def read_transformers(folder: Path) -> Checkpoint:
    """A transformers folder in safetensors, whole or in parts."""
    config, files = folder / "config.json", sorted(folder.glob("model*.safetensors"))
    if not config.is_file() or not files:
        raise FileNotFoundError(f"{folder}: a transformers model holds config.json and model.safetensors")
    tensors = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot be read: {error}. Is it complete?") from error
    return Checkpoint(str(folder), json.loads(config.read_text(encoding="utf-8")), tensors)


def find_musicgen(source: str | Path) -> Path:
    """A local path as it is; a hub id as the folder of its downloaded files."""
    path = Path(source)
    if path.exists():
        return path
    if path.parent.is_dir() and path.parent != Path():  # somewhere on this disk, such as a run's `best`
        raise ValueError(f"{path}: no such folder. A run's own folder stands for its newest checkpoint")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["config.json", "model*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MissingWeightsError(
            f"{source}: no such folder, and it cannot be fetched as a hub id. "
            "Give the path of a MusicGen in the audiocraft or the transformers format"
        ) from error


def official_config(checkpoint: Checkpoint) -> ModelConfig:
    """The network that an official checkpoint's own configuration describes."""
    video = "conditioners.visual_content.video."
    if "visual_content" not in checkpoint.settings.get("conditioners", {}):
        raise ValueError(
            f"{checkpoint.where}: is no GVMGen, nothing in it sees a video. "
            "If it is a MusicGen, training can start from it: gvm-train --init PATH"
        )
    if not checkpoint.setting(video + "is_qformer"):
        raise ValueError(f"{checkpoint.where}: is_qformer is false, so it has no feature transformation")
    missing = [name for name in (VISUAL + "proj", VISUAL + "query_tokens") if name not in checkpoint.tensors]
    refuse([f"missing {name}" for name in missing], checkpoint.where)
    feature_dim, projection_dim = checkpoint.tensors[VISUAL + "proj"].shape
    poolings: dict[str, Pooling] = {"mean": "average", "sum": "sum"}
    query_type = checkpoint.setting(video + "qformer.query_type")
    if query_type not in poolings:
        raise ValueError(f"{checkpoint.where}: query_type is {query_type!r}; known: {', '.join(poolings)}")
    return ModelConfig(
        feature_dim=feature_dim,
        projection_dim=projection_dim,
        num_queries=checkpoint.setting(video + "qformer.query_num"),
        transformation_num_layers=checkpoint.setting(video + "qformer.qformer_layers"),
        transformation_num_heads=feature_dim // 64,  # as OpenAI's CLIP
        spatial_cross_attention_every=checkpoint.setting(video + "qformer.cross_attention_frequency"),
        pooling=poolings[query_type],
        transformation_dropout=float(checkpoint.setting(video + "qformer.hidden_dropout_prob")),
        transformation_norm_eps=float(
            checkpoint.setting(video + "qformer.layer_norm_eps")
        ),  # 1e-12 is text in YAML
        frame_positions=False,
        frame_changes=False,
        **audiocraft_sizes(checkpoint),
    )


def audiocraft_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The decoder's part of a ModelConfig. Raises ValueError where it is another network than ours."""
    sizes = {
        ours: checkpoint.setting(f"transformer_lm.{theirs}") for ours, theirs in AUDIOCRAFT_SIZES.items()
    }
    delays = list(range(sizes["num_codebooks"]))
    checkpoint.refuse_other_settings("transformer_lm", AUDIOCRAFT_SETTINGS)
    checkpoint.refuse_other_settings("codebooks_pattern", {"modeling": "delay"})
    checkpoint.refuse_other_settings("codebooks_pattern.delay", {"delays": delays})
    checkpoint.refuse_other_settings("fuser", {"cross_attention_pos_emb": False, "sum": [], "prepend": []})
    return sizes


def transformers_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The same of a transformers `config.json`."""
    checkpoint.refuse_other_settings("decoder", TRANSFORMERS_SETTINGS)
    sizes = {ours: checkpoint.setting(f"decoder.{theirs}") for ours, theirs in TRANSFORMERS_SIZES.items()}
    hidden_dim = checkpoint.setting("decoder.ffn_dim")
    return sizes | {"feed_forward_scale": hidden_dim // sizes["dim"]}


@dataclass(frozen=True)
class Rule:
    """Source tensors, concatenated along their first dimension, are target tensors, concatenated likewise."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    is_transposed: bool = False

    def source_shape(self, shapes: Mapping[str, torch.Size]) -> list[int]:
        """The shape of each source, from the shapes of the targets."""
        num_rows = sum(shapes[target][0] for target in self.targets)
        shape = [num_rows // len(self.sources), *shapes[self.targets[0]][1:]]
        return shape[::-1] if self.is_transposed else shape


def _pairs(theirs: str, ours: str, *ends: str) -> list[Rule]:
    return [Rule((f"{theirs}.{end}",), (f"{ours}.{end}",)) for end in ends]


def transformation_rules(config: ModelConfig) -> list[Rule]:
    """The official feature transformation."""
    former, ours = VISUAL + "qformer.", "transformation."
    rules = [
        Rule((VISUAL + "query_tokens",), (ours + "queries",)),
        Rule((VISUAL + "proj",), (ours + "projection.weight",), is_transposed=True),
        *_pairs(former + "layernorm", ours + "norm", "weight", "bias"),
        *_pairs(VISUAL + "ln_post", ours + "norm_out", "weight", "bias"),
        *_pairs(CONDITIONER + "output_proj", ours + "output", "weight", "bias"),
    ]
    every = config.spatial_cross_attention_every
    for index in range(config.transformation_num_layers):
        theirs, layer = f"{former}encoder.layer.{index}.", f"{ours}layers.{index}."
        rules += _spatial_rules(theirs + "attention", theirs + "self_output", layer + "self_attention")
        if every and index % every == 0:
            rules += _spatial_rules(
                theirs + "crossattention", theirs + "cross_output", layer + "cross_attention"
            )
        rules += _pairs(theirs + "intermediate_query.dense", layer + "up", "weight", "bias")
        rules += _pairs(theirs + "output_query.dense", layer + "down", "weight", "bias")
        rules += _pairs(theirs + "output_query.LayerNorm", layer + "norm", "weight", "bias")
    return rules


def _spatial_rules(attention: str, output: str, ours: str) -> list[Rule]:
    rules = _pairs(attention + ".out_proj", ours + ".out", "weight", "bias")
    for end in ("weight", "bias"):
        rules.append(
            Rule((f"{attention}.in_proj_{end}",), (f"{ours}.query.{end}", f"{ours}.key_value.{end}"))
        )
        rules += _pairs(output + ".dense", ours + ".dense", end) + _pairs(
            output + ".LayerNorm", ours + ".norm", end
        )
    return rules


def audiocraft_rules(config: ModelConfig) -> list[Rule]:
    """audiocraft's language model, which official GVMGen took over."""
    ks = range(config.num_codebooks)
    rules = [
        Rule(tuple(f"emb.{k}.weight" for k in ks), ("decoder.embedding.weight",)),
        Rule(tuple(f"linears.{k}.weight" for k in ks), ("decoder.heads.weight",)),
        *_pairs("out_norm", "decoder.norm", "weight", "bias"),
    ]
    for index in range(config.num_layers):
        theirs, ours = f"transformer.layers.{index}.", f"decoder.layers.{index}."
        own, cross = ours + "self_attention.", ours + "cross_attention."
        rules += [
            Rule((theirs + "self_attn.in_proj_weight",), (own + "query_key_value.weight",)),
            Rule((theirs + "self_attn.out_proj.weight",), (own + "out.weight",)),
            Rule(
                (theirs + "cross_attention.in_proj_weight",),
                (cross + "query.weight", cross + "key_value.weight"),
            ),
            Rule((theirs + "cross_attention.out_proj.weight",), (cross + "out.weight",)),
            Rule((theirs + "linear1.weight",), (ours + "up.weight",)),
            Rule((theirs + "linear2.weight",), (ours + "down.weight",)),
            *_pairs(theirs + "norm1", ours + "norm_self", "weight", "bias"),
            *_pairs(theirs + "norm_cross", ours + "norm_cross", "weight", "bias"),
            *_pairs(theirs + "norm2", ours + "norm_feed_forward", "weight", "bias"),
        ]
    return rules


def transformers_rules(config: ModelConfig) -> list[Rule]:
    """The decoder of transformers' MusicgenForConditionalGeneration."""
    base, ks = "decoder.model.decoder.", range(config.num_codebooks)
    rules = [
        Rule(tuple(f"{base}embed_tokens.{k}.weight" for k in ks), ("decoder.embedding.weight",)),
        Rule(tuple(f"decoder.lm_heads.{k}.weight" for k in ks), ("decoder.heads.weight",)),
        *_pairs(base + "layer_norm", "decoder.norm", "weight", "bias"),
    ]
    for index in range(config.num_layers):
        theirs, ours = f"{base}layers.{index}.", f"decoder.layers.{index}."
        own, cross = ours + "self_attention.", ours + "cross_attention."
        query, key, value = (theirs + f"self_attn.{part}_proj.weight" for part in "qkv")
        text_query, text_key, text_value = (theirs + f"encoder_attn.{part}_proj.weight" for part in "qkv")
        rules += [
            Rule((query, key, value), (own + "query_key_value.weight",)),
            Rule((theirs + "self_attn.out_proj.weight",), (own + "out.weight",)),
            Rule((text_query,), (cross + "query.weight",)),
            Rule((text_key, text_value), (cross + "key_value.weight",)),
            Rule((theirs + "encoder_attn.out_proj.weight",), (cross + "out.weight",)),
            Rule((theirs + "fc1.weight",), (ours + "up.weight",)),
            Rule((theirs + "fc2.weight",), (ours + "down.weight",)),
            *_pairs(theirs + "self_attn_layer_norm", ours + "norm_self", "weight", "bias"),
            *_pairs(theirs + "encoder_attn_layer_norm", ours + "norm_cross", "weight", "bias"),
            *_pairs(theirs + "final_layer_norm", ours + "norm_feed_forward", "weight", "bias"),
        ]
    return rules
