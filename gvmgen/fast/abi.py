"""decoder.cpp's structures and functions as ctypes sees them. Order and types mirror the C++ file."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int64, c_uint32, c_void_p

from gvmgen.fast.build import library


class Matrix(ctypes.Structure):
    _fields_ = [("words", c_void_p), ("scales", c_void_p), ("outputs", c_int64), ("inputs", c_int64)]


class Norm(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class Cache(ctypes.Structure):
    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("capacity", c_int64),
        ("pasts", c_void_p),
    ]


class Layer(ctypes.Structure):
    _fields_ = [
        ("self_norm", Norm),
        ("self_in", Matrix),
        ("self_out", Matrix),
        ("cross_norm", Norm),
        ("cross_query", Matrix),
        ("cross_memory", Matrix),
        ("cross_out", Matrix),
        ("feed_forward_norm", Norm),
        ("up", Matrix),
        ("down", Matrix),
        ("self_cache", Cache),
        ("cross_cache", Cache),
    ]


class Decoder(ctypes.Structure):
    _fields_ = [
        ("precision", c_int64),
        ("dim", c_int64),
        ("num_heads", c_int64),
        ("num_layers", c_int64),
        ("num_codebooks", c_int64),
        ("codebook_size", c_int64),
        ("memory_length", c_int64),
        ("num_threads", c_int64),
        ("num_steps", c_int64),
        ("layers", POINTER(Layer)),
        ("embeddings", c_void_p),
        ("positions", c_void_p),
        ("conditions", c_void_p),
        ("bias", c_void_p),
        ("summary", c_void_p),
        ("out_norm", Norm),
        ("logits", Matrix),
    ]


class Span(ctypes.Structure):
    _fields_ = [("begin", c_void_p), ("size", c_int64)]


class Rows(ctypes.Structure):
    _fields_ = [
        ("count", c_int64),
        ("codes", c_void_p),
        ("slots", c_void_p),
        ("positions", c_void_p),
        ("logits", c_void_p),
    ]


def load() -> ctypes.CDLL:
    """The compiled library with its functions' types set. Raises build.BuildError."""
    compiled = library()
    compiled.max_rows.restype = c_int64
    compiled.decoder_step.argtypes = [POINTER(Decoder), POINTER(Rows)]
    compiled.decoder_fill_memory.argtypes = [POINTER(Decoder), POINTER(Rows)]
    compiled.use_large_pages.argtypes = [c_void_p, c_int64]
    compiled.let_go.argtypes = [c_void_p, c_int64]
    compiled.read_all.argtypes = [POINTER(Span), c_int64, c_int64]
    compiled.read_all.restype = c_uint32
    return compiled
