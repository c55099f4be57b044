# InLine's authors published no segmentation recipe. This is the one of their Agent-PVT (arXiv 2312.08874,
# github.com/LeapLabTHU/Agent-Attention) with Semantic FPN: 16 images per step, AdamW, 40k iterations.
_base_ = './ade20k_160k.py'

optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, end=40000)]
train_cfg = dict(max_iters=40000, val_interval=4000)
