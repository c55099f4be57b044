"""Multiply-adds of the op, from the shapes of its arguments."""

from collections import Counter
from math import prod

from ..gaussian_kernel import flops as gaussian_kernel


def formula(q: list[int], k: list[int], v: list[int], *_) -> Counter[str]:
    """The papers compute the kernel matrix once and use it in two products, of which this is one."""
    return Counter(
        gaussian_kernel=gaussian_kernel.formula(q, k) // 2, matmul=prod(q[:-1]) * prod(v[-2:])
    )


def executed(q: list[int], k: list[int], v: list[int], *_) -> int:
    """The kernel matrix from tokens that are two channels wider, and the product."""
    return prod(q[:-1]) * k[-2] * (q[-1] + 2 + v[-1])
