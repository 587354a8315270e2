"""Products of matrices, and attention."""

from typing import Any

import torch

from onnxsep.training.attributes import Attributes, Builder, Call, plain


def _gemm(attributes: Attributes) -> Call:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    first, second = attributes.flag("transA"), attributes.flag("transB")
    attributes.ignore("broadcast")

    def call(a: Any, b: Any, c: Any = None) -> Any:
        y = (a.t() if first else a) @ (b.t() if second else b)
        y = y if alpha == 1 else y * alpha
        return y if c is None else y + (c if beta == 1 else c * beta)

    return call


def _einsum(attributes: Attributes) -> Call:
    equation = attributes.need("equation")
    return lambda *tensors: torch.einsum(equation, *tensors)


def _attention(attributes: Attributes) -> Call:
    """Attention-23 and 24, without caches of keys and values; heads of keys may serve several of queries.

    softmax(scale Q K' + mask) V; the softcap is s tanh(./s) of the scores, before the mask.
    """
    heads = attributes.get("q_num_heads"), attributes.get("kv_num_heads")
    causal, scale, cap = attributes.flag("is_causal"), attributes.get("scale"), attributes.get("softcap", 0.0)
    attributes.ignore("softmax_precision")
    if attributes.outputs > 1 or attributes.get("qk_matmul_output_mode", 0):
        raise NotImplementedError("its outputs beside the first are not supported")

    def split(x: Any, count: int) -> Any:
        return x if x.dim() == 4 else x.reshape(*x.shape[:2], count, -1).transpose(1, 2)

    def call(query: Any, key: Any, value: Any, mask: Any = None, *caches: Any) -> Any:
        if any(cache is not None for cache in caches):
            raise NotImplementedError("caches of keys and values are not supported")
        q, k, v = split(query, heads[0]), split(key, heads[1]), split(value, heads[1])
        shared = q.shape[1] // k.shape[1]
        k, v = (tensor.repeat_interleave(shared, 1) if shared > 1 else tensor for tensor in (k, v))
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = cap * torch.tanh(scores / cap) if cap else scores
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), float("-inf"))
        y = scores.softmax(-1) @ v
        return y if query.dim() == 4 else y.transpose(1, 2).flatten(2)

    return call


TABLE: dict[str, Builder] = {
    "Gemm": _gemm,
    "MatMul": plain(torch.matmul),
    "Einsum": _einsum,
    "Attention": _attention,
}
