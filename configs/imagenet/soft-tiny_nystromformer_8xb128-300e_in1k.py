_base_ = './soft-tiny_8xb128-300e_in1k.py'
model = dict(backbone=dict(attention='nystromformer'))
