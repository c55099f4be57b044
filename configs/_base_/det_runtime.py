_base_ = './default_runtime.py'

default_scope = 'mmdet'
default_hooks = dict(
    checkpoint=dict(
        type='soft_mm.CheckpointHook', interval=1, max_keep_ckpts=3, save_best='coco/bbox_mAP'
    ),
    visualization=dict(type='DetVisualizationHook', _scope_='mmdet'),
)
visualizer = dict(
    type='DetLocalVisualizer',
    _scope_='mmdet',
    name='visualizer',
    vis_backends=[dict(type='LocalVisBackend')],
)
