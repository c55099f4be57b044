_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_inline_224px.py',
    '../_base_/schedules/imagenet_inline-cswin_300e.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.InLineCSwin', arch='base', drop_path_rate=0.5, out_type='avg_featmap'),
    head=dict(in_channels=768))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.1))
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=1 - 0.9996**(512 / 4096),
        update_buffers=True,
        priority='ABOVE_NORMAL')
]
auto_scale_lr = dict(base_batch_size=512)
