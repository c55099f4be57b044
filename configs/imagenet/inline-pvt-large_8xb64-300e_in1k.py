_base_ = './inline-pvt-medium_8xb128-300e_in1k.py'
model = dict(backbone=dict(arch='large'))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
auto_scale_lr = dict(base_batch_size=512)
