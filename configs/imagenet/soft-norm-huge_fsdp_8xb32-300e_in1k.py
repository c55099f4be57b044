# The same run in shards, for models that a GPU does not hold with their gradients and averages.
_base_ = './soft-norm-huge_8xb32-300e_in1k.py'
runner_type = 'FlexibleRunner'
strategy = dict(type='soft_mm.FSDPStrategy')
custom_hooks = []  # without averaged weights, which would be a second, whole model on each GPU
