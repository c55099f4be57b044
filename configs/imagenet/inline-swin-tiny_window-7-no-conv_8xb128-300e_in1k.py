_base_ = './inline-swin-tiny_8xb128-300e_in1k.py'
model = dict(backbone=dict(inline_window_size=7, dynamic_conv=False))
