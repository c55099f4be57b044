# Sharded training of soft-norm-huge, for GPUs that cannot hold the model with its gradients and
# optimizer state.
_base_ = './soft-norm-huge_8xb32-300e_in1k.py'
runner_type = 'FlexibleRunner'
strategy = dict(type='soft_mm.FSDPStrategy')
custom_hooks = []  # no EMAHook: averaged weights would be a second, unsharded model on each GPU
