"""LDA-AQU and its attention in plain loops over float64 numbers: slow, and hard to get wrong.

Written from the paper's equations, sharing nothing with the package.
"""

import math

import numpy as np


def bilinear_at(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """Read ``image`` (C, H, W) at a real position; zero outside."""
    result = np.zeros(image.shape[0])
    if not (math.isfinite(y) and math.isfinite(x)):
        return result
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                result += weight * image[:, row, column]
    return result


def scale(input_size: int, output_size: int) -> float:
    return (input_size - 1) / (output_size - 1) if output_size > 1 else 0.0


def attention(query, key, value, offsets, bias, num_heads: int) -> np.ndarray:
    """query (N,d,Y,X), key (N,d,H,W), value (N,C,H,W), offsets (N,g,K,2,Y,X), bias (h,K,d/h)."""
    batch, depth, out_h, out_w = query.shape
    channels, in_h, in_w = value.shape[1:]
    groups, points = offsets.shape[1:3]
    window = math.isqrt(points)
    output = np.zeros((batch, channels, out_h, out_w))
    for n in range(batch):
        for i in range(out_h):
            for j in range(out_w):
                keys, values = np.zeros((points, depth)), np.zeros((points, channels))
                for p in range(points):
                    a, b = p // window - window // 2, p % window - window // 2
                    for c in range(groups):
                        dy, dx = offsets[n, c, p, :, i, j]
                        y = (i + a + dy) * scale(in_h, out_h)
                        x = (j + b + dx) * scale(in_w, out_w)
                        k = slice(c * depth // groups, (c + 1) * depth // groups)
                        v = slice(c * channels // groups, (c + 1) * channels // groups)
                        keys[p, k] = bilinear_at(key[n, k], y, x)
                        values[p, v] = bilinear_at(value[n, v], y, x)
                for h in range(num_heads):
                    k = slice(h * depth // num_heads, (h + 1) * depth // num_heads)
                    v = slice(h * channels // num_heads, (h + 1) * channels // num_heads)
                    logits = np.zeros(points)
                    for p in range(points):
                        seen = keys[p, k] + (0 if bias is None else bias[h, p])
                        logits[p] = (depth / num_heads) ** -0.5 * np.dot(query[n, k, i, j], seen)
                    weights = np.exp(logits - logits.max())
                    output[n, v, i, j] = (weights / weights.sum()) @ values[:, v]
    return output


def convolve(image: np.ndarray, weight: np.ndarray, depthwise: bool = False) -> np.ndarray:
    """Same-size convolution of (C, H, W) with (O, C or 1, k, k)."""
    pad = weight.shape[-1] // 2
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    result = np.zeros((weight.shape[0], *image.shape[1:]))
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            patch = padded[:, i : i + weight.shape[-1], j : j + weight.shape[-1]]
            for o in range(weight.shape[0]):
                source = patch[o : o + 1] if depthwise else patch
                result[o, i, j] = np.sum(source * weight[o])
    return result


def layer_norm(image: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean = image.mean(0)
    variance = ((image - mean) ** 2).mean(0)
    normalized = (image - mean) / np.sqrt(variance + 1e-5)
    return normalized * weight[:, None, None] + bias[:, None, None]


def windows(x: np.ndarray, output_size: tuple[int, int], k: int) -> np.ndarray:
    """The k² pixels of (C, H, W) around that under each output pixel: (k², C, Y, X)."""
    height, width = output_size
    result = np.zeros((k * k, x.shape[0], height, width))
    for i in range(height):
        for j in range(width):
            for n in range(k * k):
                row = i * x.shape[1] // height + n // k - k // 2
                column = j * x.shape[2] // width + n % k - k // 2
                if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                    result[n, :, i, j] = x[:, row, column]
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def halve(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Convolution of (C, H, W) with (O, C, k, k), k even, of stride 2; zeros beyond the map."""
    _, height, width = image.shape
    k = weight.shape[-1]
    result = np.zeros((weight.shape[0], -(-height // 2), -(-width // 2)))
    for i, j in np.ndindex(*result.shape[1:]):
        for a in range(k):
            for b in range(k):
                row, column = 2 * i + a - (k - 2) // 2, 2 * j + b - (k - 2) // 2
                if 0 <= row < height and 0 <= column < width:
                    result[:, i, j] += weight[:, :, a, b] @ image[:, row, column]
    return result


def lda_aqu(x, state, output_size, num_heads, num_groups, offset_range) -> np.ndarray:
    """The whole module: x (N, C, H, W), ``state`` its parameters by their published names."""
    out_h, out_w = output_size
    queries, keys, offsets = [], [], []
    for image in x:
        normalized = layer_norm(
            image, state["layer_norm.norm.weight"], state["layer_norm.norm.bias"]
        )
        coarse = convolve(normalized, state["proj_q.weight"])
        query = np.zeros((coarse.shape[0], out_h, out_w))
        for i in range(out_h):
            for j in range(out_w):
                y, x_ = i * scale(image.shape[1], out_h), j * scale(image.shape[2], out_w)
                query[:, i, j] = bilinear_at(
                    coarse, min(y, image.shape[1] - 1), min(x_, image.shape[2] - 1)
                )
        queries.append(query)
        keys.append(convolve(normalized, state["proj_k.weight"]))
        groups = []
        for group in np.split(query, num_groups):
            hidden = convolve(group, state["conv_offset.0.weight"], depthwise=True)
            hidden = layer_norm(
                hidden, state["conv_offset.1.norm.weight"], state["conv_offset.1.norm.bias"]
            )
            erf = np.vectorize(math.erf)
            hidden = 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))
            raw = convolve(hidden, state["conv_offset.3.weight"])
            raw += state["conv_offset.3.bias"][:, None, None]
            groups.append(offset_range * np.tanh(raw).reshape(-1, 2, out_h, out_w))
        offsets.append(np.stack(groups))
    bias = state.get("relative_position_bias_table")
    return attention(
        np.stack(queries),
        np.stack(keys),
        x,
        np.stack(offsets),
        None if bias is None else bias[0, :, 0],
        num_heads,
    )
