_base_ = './inline-swin-tiny_8xb128-300e_in1k.py'
model = dict(backbone=dict(kernel_function='relu', normalization='division'))
