_base_ = './default_runtime.py'

default_scope = 'mmpretrain'
default_hooks = dict(
    checkpoint=dict(
        type='soft_mm.CheckpointHook', interval=1, max_keep_ckpts=3, save_best='accuracy/top1'
    ),
    visualization=dict(type='VisualizationHook', _scope_='mmpretrain', enable=False),
)
visualizer = dict(
    type='UniversalVisualizer',
    _scope_='mmpretrain',
    vis_backends=[dict(type='LocalVisBackend')],
)
