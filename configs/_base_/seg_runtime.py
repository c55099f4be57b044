_base_ = './default_runtime.py'

default_scope = 'mmseg'
default_hooks = dict(
    checkpoint=dict(
        type='soft_mm.CheckpointHook',
        by_epoch=False,
        interval=16000,
        max_keep_ckpts=3,
        save_best='mIoU',
    ),
    visualization=dict(type='SegVisualizationHook', _scope_='mmseg'),
)
visualizer = dict(
    type='SegLocalVisualizer',
    _scope_='mmseg',
    name='visualizer',
    vis_backends=[dict(type='LocalVisBackend')],
)
log_processor = dict(by_epoch=False)
