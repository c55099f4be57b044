"""Our backbones in the toolboxes' detectors, segmentors, classifiers and self-supervised wrappers.

Every config is the library's own, changed by ``--cfg-options`` alone, and trains a step on real images
and predicts at an odd size. A failure counts as ours unless the library's own backbone fails alike.
"""

import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmengine.structures import BaseDataElement, PixelData
from mmpretrain.models import BaseSelfSupervisor
from torch import Tensor

PAGE = Path(__file__).parents[2] / 'docs/pipelines.md'
CONFIGS = {
    package.__name__: Path(package.__file__).parent / '.mim/configs'
    for package in (mmdet, mmseg, mmpretrain)
}
ODD = (155, 117)  # width and height
SOFTS = {
    'SOFT': 'type=soft_mm.SOFT arch=tiny',
    'SOFT-Norm': 'type=soft_mm.SOFT arch=tiny sym_norm=True',
}
PYRAMIDS = {
    'InLinePVT': 'type=soft_mm.InLinePVT arch=tiny',
    'InLineSwin': 'type=soft_mm.InLineSwin arch=tiny',
    'InLineCSwin': 'type=soft_mm.InLineCSwin arch=tiny',
    'InLineDeiT': 'type=soft_mm.InLineDeiT arch=tiny pyramid=True',
}


@dataclass
class Family:
    """A config, and what its use needs beyond the rule of ``swap``.

    Attributes:
        config: its path in the library's folder of configs.
        options: options for every backbone, ours and the library's.
        readers: the parts that read the backbone's maps.
        maps: indices of the maps that the backbone returns.
        swap: options for our backbones, with the channels of their four maps as {0} to {3}.
    """

    config: str
    options: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    maps: tuple[int, ...] = ()
    swap: tuple[str, ...] = ()


F = Family
PADDED = ('model.data_preprocessor.pad_size_divisor=32',)
FAMILIES = {
    'mmdet': {
        'ATSS': F('atss/atss_r50_fpn_1x_coco'),
        'AutoAssign': F('autoassign/autoassign_r50-caffe_fpn_1x_coco'),
        'BoxInst': F('boxinst/boxinst_r50_fpn_ms-90k_coco'),
        'CARAFE': F('carafe/faster-rcnn_r50_fpn-carafe_1x_coco'),
        'Cascade R-CNN': F('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco'),
        'Cascade Mask R-CNN': F('cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco'),
        'Cascade RPN': F('cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco'),
        'CenterNet': F('centernet/centernet_r18_8xb16-crop512-140e_coco'),
        'CenterNet, updated': F('centernet/centernet-update_r50-caffe_fpn_ms-1x_coco'),
        'CondInst': F('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance'),
        'Conditional DETR': F('conditional_detr/conditional-detr_r50_8xb2-50e_coco'),
        'CrowdDet': F('crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman'),
        'DAB-DETR': F('dab_detr/dab-detr_r50_8xb2-50e_coco'),
        'DDOD': F(
            'ddod/ddod_r50_fpn_1x_coco',
            ('model.data_preprocessor.pad_size_divisor=384',),  # for a deformable convolution
        ),
        'DDQ': F('ddq/ddq-detr-4scale_r50_8xb2-12e_coco'),
        'Deformable DETR': F('deformable_detr/deformable-detr_r50_16xb2-50e_coco'),
        'DETR': F('detr/detr_r50_8xb2-150e_coco'),
        'DINO': F('dino/dino-4scale_r50_8xb2-12e_coco', ('model.num_queries=100',)),
        'Double-Head R-CNN': F('double_heads/dh-faster-rcnn_r50_fpn_1x_coco'),
        'DyHead': F('dyhead/atss_r50_fpn_dyhead_1x_coco'),
        'Dynamic R-CNN': F('dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco'),
        'Faster R-CNN': F('faster_rcnn/faster-rcnn_r50_fpn_1x_coco'),
        'FCOS': F('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco'),
        'FoveaBox': F('foveabox/fovea_r50_fpn_4xb4-1x_coco'),
        'FPG': F('fpg/faster-rcnn_r50_fpg_crop640-50e_coco'),
        'FreeAnchor': F('free_anchor/freeanchor_r50_fpn_1x_coco'),
        'FSAF': F('fsaf/fsaf_r50_fpn_1x_coco'),
        'GFL': F('gfl/gfl_r50_fpn_1x_coco'),
        'GHM': F('ghm/retinanet_r50_fpn_ghm-1x_coco'),
        'Grid R-CNN': F('grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco'),
        'GRoIE': F('groie/faste-rcnn_r50_fpn_groie_1x_coco'),
        'Guided Anchoring': F('guided_anchoring/ga-retinanet_r50_fpn_1x_coco'),
        'HTC': F('htc/htc_r50_fpn_1x_coco'),
        'LAD': F('lad/lad_r50-paa-r101_fpn_2xb8_coco_1x', ('model.teacher_ckpt=None',)),
        'LD': F(
            'ld/ld_r50-gflv1-r101_fpn_1x_coco',
            (
                'model.teacher_ckpt=None',
                f'model.teacher_config={CONFIGS["mmdet"]}/gfl/gfl_r101_fpn_ms-2x_coco.py',
            ),
        ),
        'Libra R-CNN': F('libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco'),
        'Mask2Former': F('mask2former/mask2former_r50_8xb2-lsj-50e_coco'),
        'Mask R-CNN': F('mask_rcnn/mask-rcnn_r50_fpn_1x_coco'),
        'MaskFormer': F('maskformer/maskformer_r50_ms-16xb1-75e_coco'),
        'Mask Scoring R-CNN': F('ms_rcnn/ms-rcnn_r50_fpn_1x_coco'),
        'NAS-FCOS': F(
            'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco',
            maps=(0, 1, 2, 3),
            swap=('model.neck.start_level=1',),
        ),
        'NAS-FPN': F('nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco'),
        'PAA': F('paa/paa_r50_fpn_1x_coco'),
        'PAFPN': F('pafpn/faster-rcnn_r50_pafpn_1x_coco'),
        'Panoptic FPN': F('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco'),
        'PISA': F('pisa/faster-rcnn_r50_fpn_pisa_1x_coco'),
        'PointRend': F('point_rend/point-rend_r50-caffe_fpn_ms-1x_coco'),
        'QueryInst': F(
            'queryinst/queryinst_r50_fpn_1x_coco', ('model.test_cfg.rcnn.max_per_img=100',)
        ),
        'RepPoints': F('reppoints/reppoints-moment_r50_fpn_1x_coco'),
        'RetinaNet': F('retinanet/retinanet_r50_fpn_1x_coco'),
        'RPN': F('rpn/rpn_r50_fpn_1x_coco'),
        'RTMDet': F('rtmdet/rtmdet_tiny_8xb32-300e_coco', PADDED),
        'RTMDet-Ins': F(
            'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco',
            (*PADDED, 'model.data_preprocessor.pad_mask=True'),
        ),
        'SABL': F('sabl/sabl-faster-rcnn_r50_fpn_1x_coco'),
        'SCNet': F('scnet/scnet_r50_fpn_1x_coco'),
        'SOLO': F('solo/solo_r50_fpn_1x_coco'),
        'SOLOv2': F('solov2/solov2_r50_fpn_1x_coco'),
        'Sparse R-CNN': F('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco'),
        'SSD': F(
            'ssd/ssd300_coco',
            ('model.data_preprocessor.pad_size_divisor=320',),  # its last map needs 300 pixels
            maps=(1, 2),
            swap=(
                'model.neck.out_channels=({1},{2},512,256,256,256)',
                'model.bbox_head.in_channels=({1},{2},512,256,256,256)',
            ),
        ),
        'TOOD': F('tood/tood_r50_fpn_1x_coco'),
        'VarifocalNet': F('vfnet/vfnet_r50_fpn_1x_coco'),
        'YOLACT': F(
            'yolact/yolact_r50_1xb8-55e_coco',
            ('model.data_preprocessor.pad_size_divisor=256',),  # all images of one size
        ),
        'YOLOv3': F(
            'yolo/yolov3_d53_8xb8-ms-608-273e_coco', swap=('model.neck.in_channels=[{3},{2},{1}]',)
        ),
        'YOLOF': F('yolof/yolof_r50-c5_8xb8-1x_coco'),
        'YOLOX': F('yolox/yolox_tiny_8xb8-300e_coco'),
    },
    'mmseg': {
        'ANN': F('ann/ann_r50-d8_4xb4-80k_ade20k-512x512'),
        'APCNet': F('apcnet/apcnet_r50-d8_4xb4-80k_ade20k-512x512'),
        'CCNet': F('ccnet/ccnet_r50-d8_4xb4-80k_ade20k-512x512'),
        'DANet': F('danet/danet_r50-d8_4xb4-80k_ade20k-512x512'),
        'DeepLabV3': F('deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512'),
        'DeepLabV3+': F(
            'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
            maps=(0, 2, 3),
            swap=('model.decode_head.c1_in_channels={0}',),
        ),
        'DMNet': F('dmnet/dmnet_r50-d8_4xb4-80k_ade20k-512x512'),
        'DNLNet': F('dnlnet/dnl_r50-d8_4xb4-80k_ade20k-512x512'),
        'EMANet': F(
            'emanet/emanet_r50-d8_4xb2-80k_cityscapes-512x1024',
            ('model.decode_head.num_classes=150', 'model.auxiliary_head.num_classes=150'),
        ),
        'EncNet': F(  # reads the last map alone
            'encnet/encnet_r50-d8_4xb4-80k_ade20k-512x512',
            readers=('auxiliary_head',),
            maps=(2, 3),
            swap=('model.decode_head.in_channels=[{2},{3}]', 'model.decode_head.in_index=[0,1]'),
        ),
        'FastFCN': F(
            'fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512',
            swap=('model.auxiliary_head.in_channels={2}',),
        ),
        'FCN': F('fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512'),
        'GCNet': F('gcnet/gcnet_r50-d8_4xb4-80k_ade20k-512x512'),
        'ISANet': F('isanet/isanet_r50-d8_4xb4-80k_ade20k-512x512'),
        'K-Net': F(
            'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512',
            readers=('decode_head.kernel_generate_head', 'auxiliary_head'),
        ),
        'Multi-level neck': F('vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512'),
        'Mask2Former': F('mask2former/mask2former_r50_8xb2-160k_ade20k-512x512'),
        'MaskFormer': F('maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512'),
        'Non-local Net': F('nonlocal_net/nonlocal_r50-d8_4xb4-80k_ade20k-512x512'),
        'OCRNet': F('ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512'),
        'PointRend': F('point_rend/pointrend_r50_4xb4-160k_ade20k-512x512'),
        'PSANet': F('psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512'),
        'PSPNet': F('pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512'),
        'SegFormer': F('segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512'),
        'Segmenter': F('segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512'),
        'SegNeXt': F('segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512'),
        'Semantic FPN': F('sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512'),
        'SETR, PUP': F('setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512'),
        'UPerNet': F('upernet/upernet_r50_4xb4-80k_ade20k-512x512'),
    },
    'mmpretrain': {
        'Barlow Twins': F('barlowtwins/barlowtwins_resnet50_8xb256-coslr-300e_in1k'),
        'BYOL': F('byol/byol_resnet50_16xb256-coslr-200e_in1k'),
        'DenseCL': F('densecl/densecl_resnet50_8xb32-coslr-200e_in1k'),
        'MoCo v2': F('mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k'),
        'MoCo v3': F('mocov3/mocov3_resnet50_8xb512-amp-coslr-100e_in1k'),
        'SimCLR': F('simclr/simclr_resnet50_8xb32-coslr-200e_in1k'),
        'SimSiam': F('simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k'),
        'SwAV': F('swav/swav_resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px'),
        'CSRA head': F('csra/resnet101-csra_1xb16_voc07-448px'),
        'EfficientFormer head': F(
            'efficientformer/efficientformer-l1_8xb128_in1k', swap=('model.neck.dim=2',)
        ),
        'HRFuseScales neck': F('hrnet/hrnet-w18_4xb32_in1k'),
        'LeViT head': F('levit/levit-256_8xb256_in1k'),
        'Linear head': F('resnet/resnet50_8xb32_in1k'),
        'Linear head, vectors': F(
            'convnext/convnext-tiny_32xb128_in1k', swap=('model.backbone.out_type=avg_featmap',)
        ),
        'Multi-label head, mixup': F('resnet/resnet50_8xb32-mixup_in1k'),
        'Stacked linear head': F('mobilenet_v3/mobilenet-v3-small_8xb128_in1k'),
        'Swin': F('swin_transformer/swin-tiny_16xb64_in1k'),
        'ViG head': F('vig/vig-tiny_8xb128_in1k'),
        'Vision transformer head': F(
            'vision_transformer/vit-base-p16_64xb64_in1k',
            swap=('model.backbone.out_type=avg_featmap',),
        ),
    },
}
CASES = [(library, name) for library, families in FAMILIES.items() for name in families]
OPTIONS = {
    'mmdet': ('model.backbone.init_cfg=None', 'model.data_preprocessor.batch_augments=None'),
    'mmseg': (
        'model.backbone.init_cfg=None',
        'model.pretrained=None',
        'model.data_preprocessor.size=(96,128)',
    ),
    'mmpretrain': ('model.backbone.init_cfg=None',),
}


def find_readers(model: dict) -> list[str]:
    """Names of the parts that read the backbone's maps: the neck, or without one the heads."""
    for names in ('neck',), ('panoptic_head', 'decode_head', 'auxiliary_head', 'head'):
        found = []
        for name in names:
            part = model.get(name)
            if name == 'neck' and isinstance(part, list):
                part, name = part[0], 'neck.0'
            if isinstance(part, list):
                found += [f'{name}.{i}' for i in range(len(part))]
            elif part and 'in_channels' in part:
                found.append(name)
        if found:
            return found
    return []


def get(model: dict, name: str) -> dict:
    for key in name.split('.'):
        model = model[int(key) if key.isdigit() else key]
    return model


def fewer_regions(cfg: dict, name: str = 'model') -> Iterator[str]:
    """Options that lower the numbers of regions which two-stage detectors sample and keep."""
    for key, value in enumerate(cfg) if isinstance(cfg, list) else cfg.items():
        if isinstance(value, (dict, list)):
            yield from fewer_regions(value, f'{name}.{key}')
        elif (name.endswith('sampler') and key == 'num') or key == 'max_per_img':
            yield f'{name}.{key}={min(value, 64)}'


def find_maps(part: dict, family: Family) -> list[int]:
    """Indices of the maps that a part reads, of the four at strides 4 to 32."""
    if 'in_index' in part:
        indices = part['in_index']
        return [i % 4 for i in (indices if isinstance(indices, (list, tuple)) else [indices])]
    channels = part['in_channels']
    if isinstance(channels, int):
        return [3]
    return [*(family.maps or range(4 - len(channels) + part.get('start_level', 0), 4))]


def swap(model: dict, family: Family, backbone: str, channels: list[int]) -> list[str]:
    """Options that put one of our backbones into a model and tell its readers the channels.

    The backbone returns the maps that are read, and no other: the norm of another would get no
    gradient.
    """
    maps = {
        name: find_maps(get(model, name), family) for name in family.readers or find_readers(model)
    }
    returned = family.maps or sorted({i for indices in maps.values() for i in indices})
    options = [
        'model.backbone._delete_=True',
        *(f'model.backbone.{word}' for word in backbone.split()),
        f'model.backbone.out_indices={tuple(returned)}',
    ]
    for name, indices in maps.items():
        part = get(model, name)
        values = dict(in_channels=[channels[i] for i in indices])
        if 'in_index' in part:
            values['in_index'] = [returned.index(i) for i in indices]
        for key, value in values.items():
            kind = type(part[key])
            value = value[0] if kind is int else kind(value)
            options.append(f'model.{name}.{key}={value}')
        if 'start_level' in part:
            options.append(f'model.{name}.start_level=0')
    return [*options, *(option.format(*channels) for option in family.swap)]


def datasets(library: str, cfg: Config, data: Path) -> tuple[dict, dict]:
    """The real images for training, resized at random, and for prediction, at an odd size."""
    load, flip = dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5)
    resize = dict(type='RandomResize', scale=[(240, 128), (240, 160)], keep_ratio=True)
    if library == 'mmpretrain':  # its own pipeline, of one or several views; a folder is a class
        pack = dict(type='PackInputs')
        images = dict(type='CustomDataset', data_prefix=str(data), extensions=('.jpg',))
        train = cfg.train_dataloader.dataset.pipeline
    elif library == 'mmdet':
        pack = dict(type='PackDetInputs')
        images = dict(
            type='CocoDataset',
            data_root=f'{data}/coco',
            ann_file='annotations/instances_val2017.json',
            data_prefix=dict(img='val2017/'),
        )
        masks = any(cfg.model.data_preprocessor.get(key) for key in ('pad_mask', 'pad_seg'))
        annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)
        train = [load, annotations, resize, flip, pack]
    else:
        pack = dict(type='PackSegInputs')
        images = dict(
            type='ADE20KDataset',
            data_root=f'{data}/ade20k',
            data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        )
        annotations = dict(type='LoadAnnotations', reduce_zero_label=True)
        crop = dict(type='RandomCrop', crop_size=(96, 128))
        train = [load, annotations, resize, crop, flip, pack]
    odd = [load, dict(type='Resize', scale=ODD, keep_ratio=False), pack]
    images['serialize_data'] = False  # it would collect garbage each time
    return dict(images, pipeline=train), dict(images, pipeline=odd)


def batch(dataset: dict, size: int, collate: dict) -> dict:
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(
        batch_size=size, num_workers=0, dataset=dataset, sampler=sampler, collate_fn=collate
    )
    return next(iter(Runner.build_dataloader(loader)))


def add_semantic_map(sample: BaseDataElement) -> None:
    """Paint the instances over one of COCO's classes of stuff."""
    masks = torch.from_numpy(sample.gt_instances.masks.to_ndarray()).bool()
    painted = torch.full((1, *sample.img_shape), 100)
    for mask, label in zip(masks, sample.gt_instances.labels):
        painted[0, mask] = label
    sample.gt_sem_seg = PixelData(sem_seg=painted)


def tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, BaseDataElement):
        yield from tensors(list(value.values()))


def train_and_predict(library: str, cfg: Config, data: Path) -> set[str]:
    """Take a step and predict.

    Returns:
        the names of the parameters that require a gradient and get none, or one that is not finite.
    """
    init_default_scope(library)
    set_random_seed(0)
    MessageHub.get_current_instance().update_info_dict(dict(epoch=0, iter=0, max_iters=2))
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    model.train()

    train, odd = datasets(library, cfg, data)
    collate = cfg.train_dataloader.get('collate_fn', dict(type='pseudo_collate'))
    images = batch(train, 4 if library == 'mmpretrain' else 2, collate)
    if cfg.model.data_preprocessor.get('pad_seg'):
        for sample in images['data_samples']:
            add_semantic_map(sample)
    losses = model(**model.data_preprocessor(images, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite(), losses
    loss.backward()
    missing = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    }
    torch.optim.SGD(model.parameters(), lr=1e-5).step()

    model.eval()
    image = batch(odd, 1, dict(type='pseudo_collate'))
    if library == 'mmdet':
        image['data_samples'][0].set_metainfo(dict(border=np.zeros(4)))  # for CenterNet
    with torch.no_grad():
        if isinstance(model, BaseSelfSupervisor):
            predicted = model.extract_feat(torch.stack(image['inputs']).float())
        else:
            predicted = model.test_step(image)
    found = list(tensors(predicted))
    assert found
    assert all(tensor.isfinite().all() for tensor in found)
    return missing


def attempt(*args) -> tuple[str, set[str]]:
    """The error, if there is one, and what ``train_and_predict`` returns."""
    try:
        return '', train_and_predict(*args)
    except Exception as error:
        traceback.print_exc()  # pytest shows it if the test fails
        return f'{type(error).__name__}: {str(error).partition(chr(10))[0]}', set()


@pytest.mark.long
@pytest.mark.parametrize(('library', 'name'), CASES)
def test_pipeline(library, name, photographs, parse_options, record_property):
    family, case = FAMILIES[library][name], CASES.index((library, name))
    pair = dict([[*SOFTS.items()][case % 2], [*PYRAMIDS.items()][case // 2 % 4]])

    def attempt_with(backbone: str = '') -> tuple[str, set[str]]:
        cfg = Config.fromfile(CONFIGS[library] / f'{family.config}.py')
        options = [*OPTIONS[library], *fewer_regions(cfg.model), *family.options]
        if backbone:
            channels = MODELS.build(parse_options(backbone.split())).out_channels
            options += swap(cfg.model, family, backbone, channels)
        cfg.merge_from_dict(parse_options([option.replace(' ', '') for option in options]))
        return attempt(library, cfg, photographs)

    ours = {name: attempt_with(backbone) for name, backbone in pair.items()}
    error, missing = ('', set()) if [*ours.values()] == 2 * [('', set())] else attempt_with()
    faults = {
        name: (own_error, own_missing - missing)
        for name, (own_error, own_missing) in ours.items()
        if own_error not in ('', error) or own_missing - missing
    }
    if faults:
        result = 'fails'
        reason = '; '.join(
            f'{name}: {own_error or f"no gradient in {len(own_missing)} parameters"}'
            for name, (own_error, own_missing) in faults.items()
        )
    elif error:
        result, reason = 'library', error
    else:
        result = 'passes'
        reason = f'{len(missing)} parameters get no gradient with either' if missing else ''
    row = [name, f'`{library}::{family.config}.py`', ', '.join(ours), result, reason]
    record_property('row', [cell.replace('|', '\\|') for cell in row])
    assert not faults
    if error:
        pytest.skip(f"the library's own backbone fails too: {error}")


def test_the_page_has_every_family():
    rows = re.findall(r'\| (.*?) \| `(\w+)::.*?` \|', PAGE.read_text())
    assert sorted((library, name) for name, library in rows) == sorted(CASES)
