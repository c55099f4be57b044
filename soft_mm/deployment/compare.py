"""Comparison of a network's outputs in two runtimes."""

from torch import Tensor

TOLERANCE = 1e-3  # largest difference, relative to the largest value of an output
# Whether one of two nearly equal candidates is kept, in a list of the best or beside an overlapping
# box, can depend on the last bit, and so can the classes of a pixel and of its neighbour.
UNSTABLE = 0.02

Outputs = dict[str, Tensor]


def compare(ours: Outputs, theirs: Outputs) -> str:
    """Describe in a sentence how far a runtime's outputs agree with PyTorch's.

    Args:
        ours: PyTorch's outputs by name: ``boxes (n, 4)``, ``scores (n,)``, ``labels (n,)`` and perhaps
            ``masks`` of a detector, ``classes (H, W)`` of a segmentor, or floating-point tensors.
        theirs: those of the runtime.

    Raises:
        ValueError: if they do not agree.
    """
    if 'boxes' in ours:
        return compare_detections(ours, theirs)
    for name, out in ours.items():
        if theirs[name].shape != out.shape:
            raise ValueError(
                f'{name} has the shape {tuple(theirs[name].shape)}, in PyTorch {tuple(out.shape)}'
            )
    if 'classes' in ours:
        share = (ours['classes'] == theirs['classes']).double().mean().item()
        if share < 1 - UNSTABLE:
            raise ValueError(f'only {share:.1%} of the pixels have the same class as in PyTorch')
        return f'{share:.2%} of the pixels have the same class as in PyTorch'
    largest = 0.0
    for name, out in ours.items():
        difference = ((theirs[name] - out).abs().max() / out.abs().max()).item()
        if not difference < TOLERANCE:
            raise ValueError(
                f'{name} differs from PyTorch by {difference:.1e} of the largest value, '
                f'allowed is {TOLERANCE}'
            )
        largest = max(largest, difference)
    return f'agrees with PyTorch to {largest:.1e} of the largest value'


def compare_detections(ours: Outputs, theirs: Outputs) -> str:
    """Compare detections in any order.

    Raises:
        ValueError: if more than ``UNSTABLE`` of them have no counterpart.
    """
    tolerance = TOLERANCE * ours['boxes'].abs().amax().item() if len(ours['boxes']) else 0
    same = (
        (ours['labels'][:, None] == theirs['labels'])
        & ((ours['scores'][:, None] - theirs['scores']).abs() < TOLERANCE)
        & ((ours['boxes'][:, None] - theirs['boxes']).abs() < tolerance).all(-1)
    )
    if 'masks' in ours and len(ours['boxes']):
        difference = (ours['masks'][:, None] - theirs['masks']).abs().amax((-2, -1))
        same &= difference < TOLERANCE * ours['masks'].abs().amax()
    found, number = int(same.any(1).sum()), max(same.shape)
    summary = f'{found} of {number} detections are the same as in PyTorch'
    if found < (1 - UNSTABLE) * number:
        raise ValueError(f'only {summary}')
    return summary
