_base_ = './soft-tiny_8xb128-300e_in1k.py'
model = dict(backbone=dict(arch='medium'))
train_dataloader = dict(batch_size=32)
lr = 3.5e-4 * 256 / 1024
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = _base_.param_scheduler
param_scheduler[0].start_factor = 1e-6 / lr
auto_scale_lr = dict(base_batch_size=256)
