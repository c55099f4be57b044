_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_inline_224px.py',
    '../_base_/schedules/imagenet_inline-pvt_300e.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.InLinePVT', arch='large', drop_path_rate=0.3, out_type='avg_featmap'))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
auto_scale_lr = dict(base_batch_size=512)
