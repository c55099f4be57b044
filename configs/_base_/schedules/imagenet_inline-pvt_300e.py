# InLine's recipe for PVT: a shorter warm-up, a higher minimum lr, tighter gradient clipping.
_base_ = './imagenet_inline_300e.py'

optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 5
param_scheduler[1].eta_min_ratio = 2e-2
