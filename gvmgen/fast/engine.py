"""The compiled decoder behind the DecodingEngine protocol: weights packed once, then one call a step.

R rows of an engine, K codebooks, S steps, V codebook size, M length of the visual memory, D width, H heads,
L layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gvmgen.config import ModelConfig
from gvmgen.fast import abi
from gvmgen.model import GVMGen, sinusoids

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")  # in decoder.cpp's order
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}
BLOCK = 64  # outputs side by side in a packed matrix; also the only head width
WORD_BYTES = 4
CPU = torch.device("cpu")


def unsupported(config: ModelConfig) -> str | None:
    """Why the compiled decoder cannot run this network; None if it can."""
    if config.dim != BLOCK * config.num_heads:
        return f"the compiled decoder wants heads of width {BLOCK}, not {config.dim} / {config.num_heads}"
    if config.num_codebooks * config.codebook_size % BLOCK:
        return f"the compiled decoder wants num_codebooks * codebook_size to be a multiple of {BLOCK}"
    return None


def packed(weight: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """A matrix [outputs, inputs] in decoder.cpp's layout [outputs / 64, words, 64, numbers of a word].

    int8 is stored plus 128, and comes with the scale of each output, float32 [outputs].
    """
    scales = None
    if precision == "int8":
        weight = weight.float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
        weight = (weight / scales[:, None]).round_().add_(128)
    per_word = WORD_BYTES // DTYPES[precision].itemsize
    blocks = weight.to(DTYPES[precision]).unflatten(1, (-1, per_word)).unflatten(0, (-1, BLOCK))
    return blocks.transpose(1, 2), scales


def large_empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor in pages of 2 MB where the system has them."""
    tensor = torch.empty(shape, dtype=dtype)
    abi.load().use_large_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


class PackedDecoder:
    """A decoder's weights in the order in which a step reads them.

    It takes the weights over: unless `release` is off, each matrix of the model is freed once it is packed,
    so that memory never holds them twice. The model then serves for `conditions` alone.
    """

    def __init__(
        self, model: GVMGen, precision: Precision, num_threads: int | None = None, release: bool = True
    ) -> None:
        if reason := unsupported(model.config):
            raise ValueError(reason)
        self.model, self.config, self.precision = model, model.config, precision
        self.num_threads = num_threads or torch.get_num_threads()
        self.release = release
        self.kept: list[Tensor] = []  # what the structures point to
        self.read: list[Tensor] = []  # of that, the weights that every step reads
        self.layers = (abi.Layer * self.config.num_layers)()
        with torch.inference_mode():
            self._pack_layers()
            self.norm = self._norm(model.decoder.norm)
            self.logits = self._matrices([model.decoder.heads])[0]
            self.embeddings = self._address(model.decoder.embedding.weight)

    def engine(self, conditions: Tensor, max_steps: int) -> CompiledEngine:
        """An engine for conditions [R, M, dim] whose caches hold `max_steps` steps."""
        return CompiledEngine(self, conditions, max_steps)

    def _pack_layers(self) -> None:
        layers = list(self.model.decoder.layers)
        attentions = [layer.self_attention for layer in layers]
        self._set("self_norm", [self._norm(layer.norm_self) for layer in layers])
        self._set("self_in", self._matrices([a.query_key_value for a in attentions], parts=3))
        self._set("self_out", self._matrices([a.out for a in attentions]))
        if self.config.temporal_cross_attention:
            crosses = [layer.cross_attention for layer in layers]
            memories: list[nn.Linear] = [cross.key_value for cross in crosses]
            self._set("cross_norm", [self._norm(layer.norm_cross) for layer in layers])
            self._set("cross_query", self._matrices([cross.query for cross in crosses]))
            self._set("cross_out", self._matrices([cross.out for cross in crosses]))
            self._set("cross_memory", self._matrices(memories, parts=2, every_step=False))
        self._set("feed_forward_norm", [self._norm(layer.norm_feed_forward) for layer in layers])
        self._set("up", self._matrices([layer.up for layer in layers]))
        self._set("down", self._matrices([layer.down for layer in layers]))

    def _set(self, name: str, values: Sequence[abi.Matrix | abi.Norm]) -> None:
        for layer, value in zip(self.layers, values, strict=True):
            setattr(layer, name, value)

    def _matrices(
        self, linears: list[nn.Linear], parts: int = 1, every_step: bool = True
    ) -> list[abi.Matrix]:
        """Pack matrices of one shape. `parts` projections in a row become neighbours head by head."""
        outputs, inputs = linears[0].weight.shape
        words = large_empty(len(linears), outputs * inputs, dtype=DTYPES[self.precision])
        # the scales in one piece: crumbs that stay between what packing frees would break up the heap
        scales = torch.empty(len(linears), outputs if self.precision == "int8" else 0)
        self.kept += [words, scales]
        if every_step:
            self.read.append(words)
        spaces = zip(linears, words, scales, strict=True)
        return [self._matrix(linear, parts, *space) for linear, *space in spaces]

    def _matrix(self, linear: nn.Linear, parts: int, words: Tensor, scales: Tensor) -> abi.Matrix:
        outputs, inputs = linear.weight.shape
        heads = linear.weight.unflatten(0, (parts, -1, BLOCK)).transpose(0, 1)  # [N, parts, 64, inputs]
        spaces = words.view(len(heads), -1), scales.view(len(heads), -1)
        # a head at a time: what `packed` makes on the way stays small, and leaves no holes in the heap
        for head, head_words, head_scales in zip(heads, *spaces, strict=True):
            blocks, row_scales = packed(head.flatten(0, 1), self.precision)
            head_words.view(blocks.shape).copy_(blocks)
            if row_scales is not None:
                head_scales.copy_(row_scales)
        if self.release:
            abi.load().let_go(linear.weight.data_ptr(), linear.weight.nbytes)
            linear.weight.data = linear.weight.new_empty(0)
        return abi.Matrix(words=words.data_ptr(), scales=scales.data_ptr(), outputs=outputs, inputs=inputs)

    def _norm(self, norm: nn.LayerNorm) -> abi.Norm:
        return abi.Norm(weight=self._address(norm.weight), bias=self._address(norm.bias))

    def _address(self, tensor: Tensor) -> int:
        """Keep a tensor alive as float32; where it lies."""
        self.kept.append(tensor.detach().float().contiguous())
        return self.kept[-1].data_ptr()


class CompiledEngine:
    """A DecodingEngine: the caches of R rows, and one call a step."""

    def __init__(self, weights: PackedDecoder, conditions: Tensor, max_steps: int) -> None:
        """conditions: [R, M, dim]. max_steps: how many steps the caches hold."""
        self.weights, self.config = weights, weights.config
        self.num_rows, self.memory_length = conditions.shape[:2]
        self.num_read, self.max_steps = 0, max_steps
        self.library = abi.load()
        self.max_rows = int(self.library.max_rows())
        self.kept: list[Tensor] = []  # what the structures point to
        self.slots, self.positions = _step_after_step(torch.arange(self.num_rows), max_steps)
        with torch.inference_mode():
            # rows that see the same, as the takes of one video do, share its keys and values
            memories = conditions.flatten(1).unique(dim=0, return_inverse=True)[1]
            self.layers = self._layers_with_caches(max_steps, memories)
            self.decoder = self._structure(conditions.float(), max_steps)
            if self.config.temporal_cross_attention:
                self._fill_memories(memories)

    def prefill(self, codes: Tensor) -> Tensor:
        """Read the first steps, int64 [R, K, S]. Returns the logits after the last, float32 [R, K, V]."""
        self._read(codes[:, :, :-1], logits=None)
        return self.step(codes[:, :, -1])

    def step(self, codes: Tensor) -> Tensor:
        """Read one more step, int64 [R, K]. Returns the logits after it, float32 [R, K, V]."""
        logits = torch.empty(self.num_rows, self.config.num_codebooks, self.config.codebook_size)
        self._read(codes[:, :, None], logits)
        return logits

    def read_by_a_step(self) -> list[Tensor]:
        """What the next step has to read: weights, and the past's keys, values and scales, head by head."""
        past = [head[: self.num_read] for tensor in self.past for head in tensor.flatten(0, 2)]
        return self.weights.read + past

    def _read(self, codes: Tensor, logits: Tensor | None) -> None:
        """codes: int64 [R, K, S]; a step's rows before the next step's, so that each finds its past."""
        num_steps = codes.shape[2]
        if codes.numel() and not 0 <= codes.min() <= codes.max() <= self.config.codebook_size:
            raise ValueError(f"codes {codes.min()} … {codes.max()}; known: 0 … {self.config.codebook_size}")
        if self.num_read + num_steps > self.max_steps:
            raise ValueError(f"the caches hold {self.max_steps} steps, not {self.num_read + num_steps}")
        flat = codes.permute(2, 0, 1).flatten(0, 1).contiguous()  # [R, K, S] -> [S * R, K]
        read = slice(self.num_read * self.num_rows, (self.num_read + num_steps) * self.num_rows)
        self._call(self.library.decoder_step, self.slots[read], self.positions[read], flat, logits)
        self.num_read += num_steps

    def _fill_memories(self, memories: Tensor) -> None:
        """The keys and values of each memory, int64 [R], from the first row that sees it."""
        firsts = torch.stack([(memories == each).nonzero()[0, 0] for each in memories.unique()])
        rows = _step_after_step(firsts, self.memory_length)
        self._call(self.library.decoder_fill_memory, *rows, None, None)

    def _call(
        self,
        function: Callable[..., None],
        slots: Tensor,
        positions: Tensor,
        codes: Tensor | None,
        logits: Tensor | None,
    ) -> None:
        """Run some rows, int64 [N], in as few calls as the library takes."""
        for start in range(0, len(slots), self.max_rows):
            rows = abi.Rows(
                count=min(self.max_rows, len(slots) - start),
                codes=None if codes is None else codes[start:].data_ptr(),
                slots=slots[start:].data_ptr(),
                positions=positions[start:].data_ptr(),
                logits=None if logits is None else logits[start:].data_ptr(),
            )
            function(self.decoder, rows)

    def _layers_with_caches(self, max_steps: int, memories: Tensor) -> ctypes.Array[abi.Layer]:
        """memories: int64 [R], which visual memory a row sees."""
        layers = type(self.weights.layers).from_buffer_copy(self.weights.layers)
        self.past = self._cache_memory(max_steps, self.num_rows)
        for layer, cache in zip(layers, self._caches(self.past, torch.arange(self.num_rows)), strict=True):
            layer.self_cache = cache
        if self.config.temporal_cross_attention:
            self.memory = self._cache_memory(self.memory_length, int(memories.max()) + 1)
            for layer, cache in zip(layers, self._caches(self.memory, memories), strict=True):
                layer.cross_cache = cache
        return layers

    def _cache_memory(self, length: int, num_pasts: int) -> list[Tensor]:
        """Keys and values [L, pasts, H, capacity, 64] for `length` positions, whole blocks; int8: scales."""
        capacity = -(-length // BLOCK) * BLOCK
        shape = (self.config.num_layers, num_pasts, self.config.num_heads, capacity)
        tensors = [large_empty(*shape, BLOCK, dtype=DTYPES[self.weights.precision]) for _ in range(2)]
        if self.weights.precision == "int8":
            tensors += [large_empty(*shape, dtype=torch.float32) for _ in range(2)]
        self.kept += tensors
        return tensors

    def _caches(self, tensors: list[Tensor], pasts: Tensor) -> list[abi.Cache]:
        """The layers' parts of `_cache_memory`. pasts: int64 [R], which of them is a row's."""
        self.kept.append(pasts)
        capacity = tensors[0].shape[3]
        return [
            abi.Cache(*(part.data_ptr() for part in parts), capacity=capacity, pasts=pasts.data_ptr())
            for parts in zip(*tensors, strict=True)
        ]

    def _structure(self, conditions: Tensor, max_steps: int) -> abi.Decoder:
        """What the library reads. conditions: [R, M, dim]."""
        config, weights = self.config, self.weights
        return abi.Decoder(
            precision=PRECISIONS.index(weights.precision),
            dim=config.dim,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            memory_length=self.memory_length,
            num_threads=weights.num_threads,
            num_steps=max_steps,
            layers=self.layers,
            embeddings=weights.embeddings,
            positions=self._address(sinusoids(0, max_steps, config.dim, CPU)),
            conditions=self._address(conditions),
            bias=self._address(weights.model.decoder.position_bias(0, max_steps, self.memory_length, CPU)),
            summary=self._address(weights.model.summary(conditions)),
            out_norm=weights.norm,
            logits=weights.logits,
        )

    def _address(self, tensor: Tensor | None) -> int | None:
        """Keep a tensor alive as float32; where it lies."""
        if tensor is None:
            return None
        self.kept.append(tensor.float().contiguous())
        return self.kept[-1].data_ptr()


def _step_after_step(slots: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Slots and positions, int64 [S * R] each, of slots [R]: a step's rows before the next step's."""
    return slots.repeat(num_steps), torch.arange(num_steps).repeat_interleave(len(slots))
