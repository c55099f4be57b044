from .checked import ade20k_dataset, coco_dataset, imagenet
from .fit_hook import FitHook

__all__ = ['FitHook', 'ade20k_dataset', 'coco_dataset', 'imagenet']
