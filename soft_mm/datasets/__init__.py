"""The toolboxes' datasets, with errors that name the file, the value and what is allowed.

Each is derived from a toolbox's own in a file that is imported when a config asks for the dataset,
because the package itself imports no toolbox.
"""

from importlib import import_module

from ..registry import DATASETS


def _register(name: str, file: str) -> None:
    def build(**kwargs) -> object:
        return getattr(import_module(f'{__name__}.{file}'), name)(**kwargs)

    DATASETS.register_module(name=name, module=build)


_register('CocoDataset', 'coco')
_register('ADE20KDataset', 'ade20k')
_register('ImageNet', 'imagenet')
