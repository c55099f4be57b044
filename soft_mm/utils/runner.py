from mmengine.runner import Runner as _Runner


class Runner(_Runner):
    """MMEngine's, which here takes no checkpoint but one of its own model."""

    def load_checkpoint(self, filename: str, map_location: str = 'cpu', **kwargs) -> dict:
        try:
            checkpoint = super().load_checkpoint(filename, map_location, strict=True, **kwargs)
        except RuntimeError as error:
            # One line for what is missing, one for what is unexpected, one a wrong shape.
            lines = [line if len(line) <= 500 else f'{line[:500]}…'
                     for line in str(error).splitlines() if line]
            more = [f'and {len(lines) - 20} more'] if len(lines) > 20 else []
            raise ValueError('\n  '.join(
                [f'{filename} is no checkpoint of this model:', *lines[:20], *more])) from None
        if self._resume and 'optimizer' not in checkpoint:
            raise ValueError(f'{filename} holds weights alone, without the state of the optimizer: '
                             'no training can be resumed from it')
        return checkpoint
