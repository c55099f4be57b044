# Fine-tuning at 384×384 of what was trained at 224×224, on 8 × 64 images: the authors published lr,
# weight decay and epochs; the warm-up and the minimum lr are Swin's (arXiv 2103.14030).
_base_ = './imagenet_inline_300e.py'

optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 5
param_scheduler[1].end = 30

train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
