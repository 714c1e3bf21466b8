"""Sums of products in Einstein's notation: the product of two tensors, a trace, a transposition, ..."""

from typing import Any

from minidnn.backend import array_module
from minidnn.functional.errors import wrong_shape
from minidnn.functional.math import unbroadcast
from minidnn.graph import Function, Tensor, as_tensor


class Einsum(Function):
    """y[out] = sum, over all letters that `out` lacks, of the product of x_i[terms_i]

    The gradient of an operand is such a sum again: of gy and the other operands, with its own letters as result.
    """

    def __init__(self, terms: list[str], out: str) -> None:
        self.terms, self.out = terms, out

    def forward(self, *xs: Any) -> Any:
        self.xs = xs
        return array_module(xs[0]).einsum(f"{','.join(self.terms)}->{self.out}", *xs, optimize=True)

    def backward(self, gy: Any) -> tuple:
        return tuple(self._gradient(i, gy) if need else None for i, need in enumerate(self.needs))

    def _gradient(self, i: int, gy: Any) -> Any:
        xp, x, term = array_module(gy), self.xs[i], self.terms[i]
        terms = [self.out, *self.terms[:i], *self.terms[i + 1 :]]
        own = "".join(dict.fromkeys(term))
        known = "".join(c for c in own if any(c in t for t in terms))
        g = xp.einsum(f"{','.join(terms)}->{known}", gy, *self.xs[:i], *self.xs[i + 1 :], optimize=True)
        wanted = dict(zip(term, x.shape, strict=True))
        found = dict.fromkeys(own, 1) | dict(zip(known, g.shape, strict=True))
        g = g.reshape([found[c] for c in own])
        g = unbroadcast(g, tuple(1 if wanted[c] == 1 else found[c] for c in own))
        if g.shape == x.shape:
            return g
        gx = xp.zeros(x.shape, gy.dtype)
        xp.einsum(f"{term}->{own}", gx)[...] = g  # a view: the diagonal, where a letter is there twice
        return gx


def einsum(subscripts: str, *xs: Any) -> Tensor:
    """Sum of products by subscripts: ``einsum("nhtd,nhsd->nhts", q, k)``.

    As `numpy.einsum`: without an arrow the result has the letters that are there once, in alphabetical order;
    "..." stands for further axes, which broadcast; a letter twice in a term takes the diagonal.

    ValueError: subscripts that do not fit the tensors.
    """
    xs = [as_tensor(x) for x in xs]
    given, arrow, out = subscripts.replace(" ", "").partition("->")
    terms = given.split(",")
    if len(terms) != len(xs):
        raise wrong_shape("einsum", f"{len(xs)} tensors", f"{len(terms)}, for {subscripts!r}")
    spare = "".join(c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBAzyxwvutsrqponmlkjihgfedcba" if c not in subscripts)
    extra = [x.ndim - len(t.replace("...", "")) for t, x in zip(terms, xs, strict=True)]
    for t, n, x in zip(terms, extra, xs, strict=True):
        if n < 0 or (n and "..." not in t):
            raise wrong_shape("einsum", f"{x.shape} for {t!r}", "an axis for each letter")
    most = max(extra)
    terms = [t.replace("...", spare[most - n : most]) for t, n in zip(terms, extra, strict=True)]
    if not arrow:
        once = sorted(c for c in set(given) - set(",.") if "".join(terms).count(c) == 1)
        out = "..." * ("..." in given) + "".join(once)
    return Einsum(terms, out.replace("...", spare[:most]))(*xs)
