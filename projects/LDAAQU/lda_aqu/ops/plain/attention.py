"""Local deformable attention in plain PyTorch, one sampled point at a time.

Shape shorthand:
    N: batch; d: channels of query and key; C: channels of the value; h: heads; g: groups
    H, W: input size; Y, X: output size; K: points, k²
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..autocast import without_autocast
from ..layout import compute_dtype, laid_out, memory_format_of, split_channels
from ..standard import is_transformed

Reader = Callable[[Tensor, Tensor], Tensor]

BILINEAR, ZEROS = 0, 0  # codes of aten's grid sampler for interpolation and padding


def local_deformable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> list[Tensor]:
    """See :func:`lda_aqu.ops.local_deformable_attention`."""
    with without_autocast(value):
        inputs = (query, key, value, offsets, position_bias, num_heads)
        return [_attend(*inputs, _gather if is_transformed() else _sample_grid)]


def sampling(
    query: Tensor, key: Tensor, offsets: Tensor, position_bias: Tensor | None, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Where the operator reads for its inputs, and how it weighs what it reads.

    Returns:
        Positions (N, g, K, 2, Y, X), (y, x) in input pixels, and weights (N, h, K, Y, X).
    """
    with without_autocast(key):
        sampler = _Sampler(query, key, key, offsets, position_bias, num_heads)
        return sampler.positions(), sampler.attention()


def local_deformable_attention_backward(
    grads: Sequence[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> list[Tensor | None]:
    """Gradients of the tensors, in their order; those to be differentiated only where needed."""
    inputs = (query, key, value, offsets, position_bias)
    with without_autocast(value):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
            return _differentiable_backward(grads, inputs, num_heads)
        s = _Sampler(*inputs, num_heads)
        attention = s.attention()
        grad_output = s.split_heads(grads[0].to(s.value.dtype))
        grad_offsets = torch.zeros_like(s.offsets, memory_format=torch.contiguous_format)

        grad_value = torch.zeros_like(s.value)
        grad_attention = torch.empty_like(attention)
        for n in range(s.num_points):
            sampled = s.split_heads(s.sample(s.value, n))
            grad_attention[:, :, n] = (grad_output * sampled).sum(2)
            grad_sampled = (grad_output * attention[:, :, n, None]).flatten(1, 2)
            s.sample_backward(grad_sampled, s.value, n, grad_value, grad_offsets)

        # Softmax: dL/dlogit = a * (dL/da - sum(a * dL/da)).
        mean = (attention * grad_attention).sum(2, keepdim=True)
        grad_logits = attention * (grad_attention - mean) * s.scale

        q = s.split_heads(s.query)
        grad_query = torch.zeros_like(q)
        grad_key = torch.zeros_like(s.key)
        for n in range(s.num_points):
            grad_logit = grad_logits[:, :, n, None]
            grad_query.addcmul_(s.split_heads(s.sample(s.key, n)), grad_logit)
            s.sample_backward((q * grad_logit).flatten(1, 2), s.key, n, grad_key, grad_offsets)
        grad_bias = []
        if s.bias is not None:
            grad_query += torch.einsum("nhkyx,hkd->nhdyx", grad_logits, s.bias)
            grad_bias = [torch.einsum("nhkyx,nhdyx->hkd", grad_logits, q).to(position_bias.dtype)]
        return [
            laid_out(grad_query.flatten(1, 2).to(query.dtype), torch.channels_last),
            laid_out(grad_key.view(key.shape).to(key.dtype), torch.channels_last),
            laid_out(grad_value.view(value.shape).to(value.dtype), memory_format_of(value)),
            grad_offsets.to(offsets.dtype),
            *grad_bias,
        ]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
    read: Reader,
) -> Tensor:
    sampler = _Sampler(query, key, value, offsets, position_bias, num_heads, read)
    attention = sampler.attention()
    output = sampler.split_heads(sampler.value.new_zeros((*value.shape[:2], *query.shape[2:])))
    for n in range(sampler.num_points):
        sampled = sampler.split_heads(sampler.sample(sampler.value, n))
        output = torch.addcmul(output, sampled, attention[:, :, n, None])
    return laid_out(output.flatten(1, 2).to(value.dtype), memory_format_of(value))


def _differentiable_backward(
    grads: Sequence[Tensor], inputs: Sequence[Tensor | None], num_heads: int
) -> list[Tensor | None]:
    """The gradients with a graph of their own, for derivatives of higher order.

    They are those of aliases: an input may have been computed from another one, whose gradient is
    not to include that way. A tensor that needs none has None.
    """
    inputs = [t.view_as(t) if t is not None and t.requires_grad else t for t in inputs]
    output = _attend(*inputs, num_heads, _gather)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, grads[0], create_graph=True))
    return [next(found) if t.requires_grad else None for t in inputs if t is not None]


def _sample_grid(source: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples of (N, C, H, W), (N, C, Y, X), at (N, Y, X, 2), (x, y) in [-1, 1].

    Corners are aligned; outside the map zero is read.
    """
    return torch.grid_sampler(source, grid, BILINEAR, ZEROS, True)


def _gather(source: Tensor, grid: Tensor) -> Tensor:
    """What :func:`_sample_grid` reads, in operators of which all derivatives are known."""
    height, width = source.shape[2:]
    x, y = ((grid[..., axis] + 1) * ((side - 1) / 2) for axis, side in ((0, width), (1, height)))
    total = 0.0
    for row, weight_y in _neighbours(y):
        for column, weight_x in _neighbours(x):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = torch.where(inside, row * width + column, 0).long().flatten(1)
            pixels = source.flatten(2).gather(2, index[:, None].expand(-1, source.shape[1], -1))
            weight = torch.where(inside, weight_y * weight_x, 0)
            total = total + pixels.unflatten(2, y.shape[1:]) * weight[:, None]
    return total


def _neighbours(position: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole positions before and after, and their weights in linear interpolation."""
    before = position.detach().floor()
    yield before, before + 1 - position
    yield before + 1, position - before


class _Sampler:
    """The inputs in the computation's dtype, and how one point of all output pixels is read."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        offsets: Tensor,
        position_bias: Tensor | None,
        num_heads: int,
        read: Reader = _sample_grid,
    ) -> None:
        self.read = read
        dtype = compute_dtype(query, key, value, offsets, position_bias)
        self.num_heads = num_heads
        self.num_groups, self.num_points = offsets.shape[1:3]
        self.kernel_size = math.isqrt(self.num_points)
        self.scale = (query.shape[1] // num_heads) ** -0.5
        self.query = query.to(dtype).contiguous()
        self.key = self._split_groups(key.to(dtype))
        self.value = self._split_groups(value.to(dtype))
        self.offsets = offsets.to(dtype)
        self.bias = None if position_bias is None else position_bias.to(dtype)
        # Output pixels to grid_sample's [-1, 1]; a size of 1 has no extent and stays at -1.
        self.to_grid = [2 / (size - 1) if size > 1 else 0.0 for size in query.shape[2:]]
        rows, columns = (
            torch.arange(size, dtype=dtype, device=query.device) for size in query.shape[2:]
        )
        self.rows, self.columns = rows[:, None], columns[None, :]

    def _split_groups(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to contiguous (N * g, C / g, H, W)."""
        n, c, h, w = x.shape
        return x.contiguous().view(n * self.num_groups, c // self.num_groups, h, w)

    def _merge_groups(self, x: Tensor) -> Tensor:
        """(N * g, C / g, Y, X) to (N, C, Y, X)."""
        n = self.query.shape[0]
        return x.view(n, self.num_groups * x.shape[1], *x.shape[2:])

    def split_heads(self, x: Tensor) -> Tensor:
        """(N, C, Y, X) to (N, h, C / h, Y, X)."""
        return split_channels(x, self.num_heads)

    def _grid(self, n: int) -> Tensor:
        """Where point n is read: (N * g, Y, X, 2), (x, y) in [-1, 1]."""
        a, b = (i - self.kernel_size // 2 for i in divmod(n, self.kernel_size))
        dy, dx = self.offsets[:, :, n].flatten(0, 1).unbind(1)
        y = (dy + (self.rows + a)) * self.to_grid[0] - 1
        x = (dx + (self.columns + b)) * self.to_grid[1] - 1
        return torch.stack((x, y), dim=-1)

    def positions(self) -> Tensor:
        """Where all points are read: (N, g, K, 2, Y, X), (y, x) in input pixels."""
        grids = torch.stack([self._grid(n) for n in range(self.num_points)], dim=1)
        extent = torch.tensor(self.key.shape[2:]).to(grids) - 1
        positions = (grids.flip(-1) + 1) * extent / 2
        return positions.permute(0, 1, 4, 2, 3).unflatten(0, (-1, self.num_groups))

    def sample(self, source: Tensor, n: int) -> Tensor:
        """Read point n of ``source``, (N * g, C / g, H, W): (N, C, Y, X)."""
        return self._merge_groups(self.read(source, self._grid(n)))

    def sample_backward(
        self, grad: Tensor, source: Tensor, n: int, grad_source: Tensor, grad_offsets: Tensor
    ) -> None:
        """Add what :meth:`sample` of ``source`` at n passes on of ``grad``, (N, C, Y, X)."""
        grad_input, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            self._split_groups(grad), source, self._grid(n), BILINEAR, ZEROS, True, [True, True]
        )
        grad_source += grad_input
        grad_x, grad_y = grad_grid.unflatten(0, grad_offsets.shape[:2]).unbind(-1)
        grad_offsets[:, :, n, 0].add_(grad_y, alpha=self.to_grid[0])
        grad_offsets[:, :, n, 1].add_(grad_x, alpha=self.to_grid[1])

    def attention(self) -> Tensor:
        """Softmax over the points: (N, h, K, Y, X)."""
        q = self.split_heads(self.query)
        logits = torch.stack(
            [
                (q * self.split_heads(self.sample(self.key, n))).sum(dim=2)
                for n in range(self.num_points)
            ],
            dim=2,
        )
        if self.bias is not None:
            logits = logits + torch.einsum("nhdyx,hkd->nhkyx", q, self.bias)
        return (logits * self.scale).softmax(dim=2)
