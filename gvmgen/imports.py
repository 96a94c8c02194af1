"""Weights of others as ours: official GVMGen checkpoints, and MusicGen of audiocraft and of transformers.

A format is a list of rules between its tensor names and ours. Only tensors and plain values are unpickled.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from gvmgen.config import ModelConfig, Pooling
from gvmgen.encoders.presets import MissingWeightsError
from gvmgen.model import GVMGen
from gvmgen.weights import assign, empty_model, refuse

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


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of every tensor: of ours the loaded and the re-initialised, of theirs the dropped."""

    loaded: tuple[str, ...]
    initialised: tuple[str, ...] = ()
    dropped: tuple[str, ...]

    def lines(self) -> list[str]:
        """For a person to read: names that differ in a number only share a line."""
        fates = {"loaded": self.loaded, "re-initialised": self.initialised, "dropped": self.dropped}
        return [
            f"{fate}: {name} ({count} tensors)"
            for fate, names in fates.items()
            for name, count in _without_numbers(names).items()
        ]


def _without_numbers(names: Iterable[str]) -> dict[str, int]:
    """Names with `*` for their numbers -> how many there are."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"\.\d+(?=\.)", ".*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    return counts


def import_official(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> tuple[GVMGen, ImportReport]:
    """The network of an official GVMGen checkpoint: `state_dict.bin` or the folder that holds it.

    Sizes come from the checkpoint's own configuration. Raises ValueError that names every tensor that is
    missing, unexpected or mis-shaped, and every setting that would make it another network.
    """
    settings, tensors = read_audiocraft(path)
    model = empty_model(official_config(settings, tensors, str(path)))
    rules = transformation_rules(model.config) + audiocraft_rules(model.config)
    dropped = tuple(name for name in tensors if FROZEN_CLIP.match(name))
    translated = translate(tensors, rules, model, set(dropped), str(path))
    assign(model, translated, where=str(path), device=device, dtype=dtype)
    return model, ImportReport(loaded=tuple(model.state_dict()), dropped=dropped)


def import_musicgen(
    source: str | Path, config: ModelConfig, *, keeps_text_attention: bool = False
) -> tuple[GVMGen, ImportReport]:
    """A new network whose decoder starts from MusicGen; a folder or file of either format, or a hub id.

    The feature transformation is new. So is the cross-attention, and it starts silent: MusicGen's own looks
    for words, not for pictures. keeps_text_attention takes it over nevertheless.
    Raises ValueError where the decoder's sizes are not `config`'s; MissingWeightsError where there is none.
    """
    path = find_musicgen(source)
    is_audiocraft = is_audiocraft_checkpoint(path)
    settings, tensors = read_audiocraft(path) if is_audiocraft else read_transformers(path)
    sizes = (
        audiocraft_sizes(settings, str(path)) if is_audiocraft else transformers_sizes(settings, str(path))
    )
    check_sizes(config, sizes, str(path))
    model = GVMGen(config)
    rules = audiocraft_rules(config) if is_audiocraft else transformers_rules(config)
    if not keeps_text_attention:
        rules = [rule for rule in rules if not any(map(TEXT_ATTENTION.match, rule.sources))]
        silence_cross_attention(model)
    used = {name for rule in rules for name in rule.sources}
    dropped = [name for name in tensors if OTHER_PARTS.match(name) or TEXT_ATTENTION.match(name)]
    dropped = [name for name in dropped if name not in used]
    ours = model.state_dict()
    loaded = []
    for name, tensor in translate(tensors, rules, model, set(dropped), str(path)):
        ours[name].copy_(tensor)
        loaded.append(name)
    initialised = tuple(name for name in ours if name not in set(loaded))
    return model, ImportReport(loaded=tuple(loaded), initialised=initialised, dropped=tuple(dropped))


@torch.no_grad()
def silence_cross_attention(model: GVMGen) -> None:
    """Let new cross-attention add nothing at first, so that training starts from MusicGen's own music."""
    for layer in model.decoder.layers:
        if model.config.temporal_cross_attention:
            layer.cross_attention.out.weight.zero_()


def translate(
    tensors: Mapping[str, Tensor], rules: list[Rule], model: GVMGen, dropped: set[str], where: str
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors, one at a time, after a check that every tensor is in its place."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    refuse(_problems(tensors, rules, shapes, dropped), where)
    for rule in rules:
        parts = [tensors[name] for name in rule.sources]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        whole = whole.t() if rule.is_transposed else whole
        rows = [shapes[target][0] for target in rule.targets]
        for target, tensor in zip(rule.targets, whole.split(rows), strict=True):
            yield target, tensor.clone(memory_format=torch.contiguous_format)


def _problems(
    tensors: Mapping[str, Tensor], rules: list[Rule], shapes: Mapping[str, torch.Size], dropped: set[str]
) -> list[str]:
    """Every tensor that is missing, unexpected or mis-shaped, by the names of the file."""
    wanted = {name: rule.source_shape(shapes) for rule in rules for name in rule.sources}
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    for name, tensor in tensors.items():
        if name in wanted and list(tensor.shape) != wanted[name]:
            problems.append(f"{name} is {list(tensor.shape)}, wanted {wanted[name]}")
        elif name not in wanted and name not in dropped:
            problems.append(f"unexpected {name}")
    return problems


# The formats' names


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


# The formats' sizes


def official_config(settings: dict[str, Any], tensors: Mapping[str, Tensor], where: str) -> ModelConfig:
    """The network that an official checkpoint's configuration describes."""
    video = settings.get("conditioners", {}).get("visual_content", {}).get("video", {})
    former = video.get("qformer")
    if not video.get("is_qformer") or former is None:
        raise ValueError(f"{where}: its configuration has no feature transformation (is_qformer, qformer)")
    missing = [name for name in (VISUAL + "proj", VISUAL + "query_tokens") if name not in tensors]
    refuse([f"missing {name}" for name in missing], where)
    feature_dim, projection_dim = tensors[VISUAL + "proj"].shape
    poolings: dict[str, Pooling] = {"mean": "average", "sum": "sum"}
    if former["query_type"] not in poolings:
        raise ValueError(f"{where}: query_type is {former['query_type']!r}; known: {', '.join(poolings)}")
    return ModelConfig(
        feature_dim=feature_dim,
        projection_dim=projection_dim,
        num_queries=former["query_num"],
        transformation_num_layers=former["qformer_layers"],
        transformation_num_heads=feature_dim // 64,  # as OpenAI's CLIP
        spatial_cross_attention_every=former["cross_attention_frequency"],
        pooling=poolings[former["query_type"]],
        transformation_dropout=float(former["hidden_dropout_prob"]),
        transformation_norm_eps=float(former["layer_norm_eps"]),  # YAML reads 1e-12 as text
        frame_positions=False,
        **audiocraft_sizes(settings, where),
    )


def audiocraft_sizes(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """The decoder's part of a ModelConfig. Raises ValueError where it is another network than ours."""
    values = settings["transformer_lm"]
    num_codebooks = values["n_q"]
    delays = settings["codebooks_pattern"]["delay"]["delays"]
    others = [
        f"{name} is {values[name]!r}, wanted {wanted!r}"
        for name, wanted in AUDIOCRAFT_SETTINGS.items()
        if name in values and values[name] != wanted
    ]
    if delays != list(range(num_codebooks)):
        others.append(f"delays are {delays}, wanted {list(range(num_codebooks))}")
    if settings.get("fuser", {}).get("cross_attention_pos_emb"):
        others.append("cross_attention_pos_emb is true, wanted false")
    refuse(others, where)
    return {
        "dim": values["dim"],
        "num_layers": values["num_layers"],
        "num_heads": values["num_heads"],
        "feed_forward_scale": values["hidden_scale"],
        "num_codebooks": num_codebooks,
        "codebook_size": values["card"],
    }


def transformers_sizes(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """The same of a transformers `config.json`."""
    values = settings["decoder"]
    wanted = {"activation_function": "gelu", "audio_channels": 1, "scale_embedding": False}
    others = [
        f"{name} is {values[name]!r}, wanted {value!r}"
        for name, value in wanted.items()
        if values.get(name, value) != value
    ]
    refuse(others, where)
    return {
        "dim": values["hidden_size"],
        "num_layers": values["num_hidden_layers"],
        "num_heads": values["num_attention_heads"],
        "feed_forward_scale": values["ffn_dim"] // values["hidden_size"],
        "num_codebooks": values["num_codebooks"],
        "codebook_size": values["vocab_size"],
    }


def check_sizes(config: ModelConfig, sizes: dict[str, Any], where: str) -> None:
    """Raise ValueError unless a network of `config` can take a decoder of these sizes."""
    others = [
        f"{name} is {value}, wanted {getattr(config, name)}"
        for name, value in sizes.items()
        if value != getattr(config, name)
    ]
    refuse(others, where)


# The formats' files


def is_audiocraft_checkpoint(path: Path) -> bool:
    """Whether a path is audiocraft's `state_dict.bin`, or a folder that holds it."""
    return path.suffix == ".bin" or (path / AUDIOCRAFT_WEIGHTS).is_file()


def read_audiocraft(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of an exported audiocraft checkpoint, mapped into memory, not copied."""
    file = path / AUDIOCRAFT_WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; an audiocraft checkpoint holds {AUDIOCRAFT_WEIGHTS}")
    try:
        package = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: cannot be read as tensors and plain values: {reason}") from error
    if not isinstance(package, dict) or not {"best_state", "xp.cfg"} <= set(package):
        raise ValueError(f"{file}: is no exported audiocraft checkpoint, which holds best_state and xp.cfg")
    state = package["best_state"]
    return yaml.safe_load(package["xp.cfg"]), state.get("model", state)


def read_transformers(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a transformers folder in safetensors, whole or in parts."""
    config, files = folder / "config.json", sorted(folder.glob("model*.safetensors"))
    if not config.is_file() or not files:
        raise FileNotFoundError(f"{folder}: a transformers model holds config.json and model.safetensors")
    tensors = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return json.loads(config.read_text(encoding="utf-8")), tensors


def find_musicgen(source: str | Path) -> Path:
    """A local path as it is; a hub id as the folder of its downloaded files."""
    path = Path(source)
    if path.exists():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["config.json", "model*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MissingWeightsError(
            f"{source}: no such folder, and it cannot be fetched as a hub id. "
            "Give the path of a MusicGen in the audiocraft or the transformers format"
        ) from error
