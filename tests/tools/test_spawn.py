"""Training with data loaders that spawn their workers, as on macOS, Windows and some clusters."""

import torch

DEMO = 'configs/demo/retinanet_soft-norm-tiny_fpn_shapes.py'


def test_a_detector_trains_with_spawned_workers(run_tool, tmp_path):
    shapes = tmp_path / 'shapes'
    run_tool('misc/make_shapes.py', shapes, '--train', 4, '--val', 1, '--size', 64)
    done = run_tool(
        'train.py',
        DEMO,
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        'env_cfg.mp_cfg.mp_start_method=spawn',
        'train_cfg.max_epochs=1',
        'default_hooks.logger.interval=1',
        *(
            f'{loader}_dataloader.dataset.data_root={shapes}/'
            for loader in ('train', 'val', 'test')
        ),
        *(f'{loader}_dataloader.num_workers=1' for loader in ('train', 'val', 'test')),
        *(
            f'{loader}_evaluator.ann_file={shapes}/annotations/instances_val.json'
            for loader in ('val', 'test')
        ),
    )
    assert "mp_start_method='spawn'" in done.stdout + done.stderr
    assert 'Epoch(train) [1][1/1]' in done.stdout + done.stderr
    state = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=False)
    assert state['meta']['iter'] == 1
