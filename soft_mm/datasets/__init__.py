"""The toolboxes' datasets with input checks, whose errors name the file and the invalid value.

Each dataset derives from a toolbox's own. Its module is imported when the dataset is built, because
importing soft_mm must not import any toolbox.
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
