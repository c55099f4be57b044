from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth per sample (arXiv 1603.09382).

    Args:
        p (float): probability of dropping a sample's residual branch, in [0, 1). The remaining
            branches are scaled by ``1 / (1 − p)``.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f'p={self.p}'
