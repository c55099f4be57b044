# InLine's recipe for CSwin: a higher minimum lr, no gradient clipping, averaged weights.
_base_ = './imagenet_inline_300e.py'

optim_wrapper = dict(clip_grad=None)
param_scheduler = _base_.param_scheduler
param_scheduler[1].eta_min_ratio = 2e-2
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=1 - 0.9996 ** (1024 / 4096),  # for 8 × 128 images per step
        update_buffers=True,
        priority='ABOVE_NORMAL',
    )
]
