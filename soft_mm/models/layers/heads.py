"""Check of the number of attention heads."""


def check_heads(dims: int, num_heads: int) -> None:
    """Check that the channels split evenly into heads.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dims``.
    """
    if num_heads < 1 or dims % num_heads:
        raise ValueError(f'num_heads must divide the {dims} channels, got {num_heads}')
