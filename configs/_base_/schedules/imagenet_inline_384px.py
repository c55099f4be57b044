# Fine-tunes models trained at 224×224 on images of 384×384, with 8 × 64 images per step. The authors
# published lr, weight decay and epochs; warm-up and minimum lr are Swin's (arXiv 2103.14030).
_base_ = './imagenet_inline_300e.py'

optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 5
param_scheduler[1].end = 30

train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
