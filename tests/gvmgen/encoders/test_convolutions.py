"""The quick convolutions against the network's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gvmgen.encoders import convolutions
from gvmgen.encoders.convolutions import QuickElu, QuickEncoder
from gvmgen.encoders.encodec import EncodecSettings, Lstm, encoder

FRAME = 640  # samples
RATIOS = (8, 5, 4, 4)


def layers(**settings: Any) -> list[nn.Module]:
    """All before the LSTM."""
    torch.manual_seed(0)
    config = EncodecSettings(num_filters=4, upsampling_ratios=RATIOS, use_causal_conv=False, **settings)
    found = list(encoder(config).layers.requires_grad_(False))
    return found[: next(i for i, layer in enumerate(found) if isinstance(layer, Lstm))]


def sound(num_samples: int) -> Tensor:
    """float32 [2, 1, N]"""
    return torch.randn(2, 1, num_samples, generator=torch.Generator().manual_seed(1))


def run(found: list[nn.Module], x: Tensor) -> Tensor:
    for layer in found:
        x = layer(x)
    return x


@pytest.mark.parametrize(
    "settings",
    [
        {"pad_mode": "reflect"},
        {"pad_mode": "constant"},
        {"use_conv_shortcut": False},
        {"num_residual_layers": 2},
    ],
)
@pytest.mark.parametrize("num_samples", [1, FRAME - 1, FRAME + 1, 131 * FRAME, 103 * FRAME + 7])
def test_they_compute_what_the_layers_do(settings: dict[str, Any], num_samples: int) -> None:
    found, x = layers(**settings), sound(num_samples)
    wanted = run(found, x)
    given = QuickEncoder(found)(x)
    assert given.shape == wanted.shape
    assert torch.allclose(given, wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("num_residual_layers", [1, 2])
def test_pieces_of_any_length_leave_no_seam(
    monkeypatch: pytest.MonkeyPatch, piece: int, num_residual_layers: int
) -> None:
    monkeypatch.setattr(convolutions, "_STAGES", ((40, piece), (8, piece), (1, piece)))
    found, x = layers(num_residual_layers=num_residual_layers), sound(30 * FRAME + 100)
    wanted = run(found, x)
    given = QuickEncoder(found)(x)
    assert torch.allclose(given, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_too_small_a_margin_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_MARGIN", 0)
    found, x = layers(), sound(30 * FRAME)
    wanted = run(found, x)
    given = QuickEncoder(found)(x)
    assert not torch.allclose(given, wanted, atol=1e-3 * float(wanted.abs().max()))


def test_the_quick_elu_is_elu() -> None:
    x = torch.cat([torch.linspace(-30, 30, 10_001), torch.linspace(-1e-3, 1e-3, 1001), torch.tensor([-0.0])])
    assert torch.allclose(QuickElu()(x), nn.functional.elu(x), rtol=0, atol=1.2e-7)
    assert QuickElu()(torch.tensor([-float("inf"), float("inf")])).tolist() == [-1, float("inf")]
