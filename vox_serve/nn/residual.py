"""How the layers of a stack read the residual and add to it.

The residual is `x` plus the last layer's output, `added`; the next reader computes the sum.  For
few rows on a GPU, reading is one kernel (`vox_serve.nn.triton_linear`), and `added` consists of
float32 parts `[S, ...]` of a sum; otherwise each step is a separate operation.
"""

from __future__ import annotations

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn.kernels import add_rms_norm, few_rows, rms_norm, silu_mul
from vox_serve.nn.linear import held


class RMSNorm(nn.Module):
    """Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `x + residual`, and that sum; x may be parts of a sum."""
        return add_rms_norm(x, residual, self.weight, self.eps)


@attrs.frozen(eq=False)
class Rows:
    """Rows `ids` `[B]` of a table `[V, H]`: a residual `[B, 1, H]` that is looked up when read."""

    table: torch.Tensor
    ids: torch.Tensor

    @property
    def tensor(self) -> torch.Tensor:
        return F.embedding(self.ids, self.table)[:, None]


def read(
    norm: RMSNorm,
    layer: nn.Module,
    x: torch.Tensor | Rows,
    added: torch.Tensor | None = None,
    gates: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`layer(norm(x + added))` `[..., N]`, and the sum `[..., H]`.

    Args:
        gates: return the SiLU of the product's first half times its second half.
    """
    table, ids = (x.table, x.ids) if isinstance(x, Rows) else (x, None)
    weights = held(layer)
    if weights is not None and few_rows(table, ids):
        from vox_serve.nn import triton_linear

        return triton_linear.read(table, ids, added, norm.weight, norm.eps, weights, gates)
    normed, total = normed_sum(norm, x, added)
    product: torch.Tensor = layer(normed)
    return (silu_mul(product) if gates else product), total


def normed_sum(
    norm: RMSNorm, x: torch.Tensor | Rows, added: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`norm(x + added)` and the sum."""
    if isinstance(x, Rows):
        x = x.tensor
    return (norm(x), x) if added is None else norm.add(added, x)


def left_by(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`layer(x)`, to be added to the residual: `[..., H]`, or parts of it."""
    weights = held(layer)
    if weights is not None and few_rows(x):
        from vox_serve.nn import triton_linear

        return triton_linear.parts(x, weights)
    left: torch.Tensor = layer(x)
    return left
