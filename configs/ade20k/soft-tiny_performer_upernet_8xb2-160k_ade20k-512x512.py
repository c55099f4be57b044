_base_ = './soft-norm-tiny_upernet_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        attention='performer',
        sym_norm=False,
        init_cfg=dict(checkpoint='checkpoints/soft-tiny_performer.pth'),
    )
)
