"""Mutations of bytes."""

from collections.abc import Sequence

from hypothesis import strategies as st


@st.composite
def damaged(draw: st.DrawFn, content: bytes, cuts: Sequence[int] | None = None) -> bytes:
    """Replace slices of a file by bytes or by other slices of it: flip, cut, insert, swap, repeat.

    Args:
        content: the whole file.
        cuts: where slices may begin and end; by default anywhere.
    """
    places = st.sampled_from(cuts) if cuts else st.integers(0, len(content))

    def piece() -> slice:
        start = draw(places)
        if cuts:
            return slice(*sorted((start, draw(places))))
        return slice(start, start + draw(st.sampled_from((0, 1, 1, 2, 4, 8, 100, len(content)))))

    pieces = sorted((piece() for _ in range(draw(st.integers(1, 4)))), key=lambda p: p.start)
    result, end = b'', 0
    for old in pieces:
        new = content[piece()] if draw(st.booleans()) else draw(st.binary(max_size=4))
        result += content[end : max(end, old.start)] + new
        end = max(end, old.stop)
    return result + content[end:]
