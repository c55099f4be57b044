from .checked import ade20k_dataset, coco_dataset, imagenet

__all__ = ['ade20k_dataset', 'coco_dataset', 'imagenet']
