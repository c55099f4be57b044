import pytest
import torch
from torch import nn

from soft_mm import SOFT
from soft_mm.models.backbones.soft import ATTENTIONS

SMALL = dict(
    channels=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1), kernel_sizes=(9, 5, 3)
)
RIVALS = [name for name in ATTENTIONS if name != 'gaussian']


def build(**kwargs) -> SOFT:
    torch.manual_seed(0)
    return SOFT(**{'arch': SMALL, 'sym_norm': True, 'img_size': 64, **kwargs})


def image(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


# REFERENCE: parameters in millions, with a head for 1000 classes.
@pytest.mark.parametrize(
    ('arch', 'params'),
    [('tiny', 13.07), ('small', 24.11), ('medium', 45.81), ('large', 64.70), ('huge', 87.11)],
)
@pytest.mark.parametrize('sym_norm', [False, True])
def test_archs(arch, params, sym_norm):
    model = SOFT(arch, sym_norm=sym_norm).eval()
    head = nn.Linear(model.out_channels[-1], 1000)
    count = sum(p.numel() for module in (model, head) for p in module.parameters())
    assert round(count / 1e6, 2) == params
    with torch.no_grad():
        maps = model(image(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(model.arch_zoo[arch]['channels'], (4, 8, 16, 32))
    ]
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize('size', [(28, 64), (64, 28), (1, 1)])
def test_images_without_a_landmark_are_rejected(size):
    with pytest.raises(ValueError, match=rf'at least 29×29.*got {size[0]}×{size[1]}'):
        build()(torch.zeros(1, 3, *size))


def test_output_does_not_depend_on_the_batch():
    """Even with many similar landmarks, where the iteration is far from converged."""
    x = image(2, 3, 256, 256)
    x[1] *= 0.01
    model = build().eval()
    with torch.no_grad():
        alone, together = model(x[:1]), model(x)
        for a, t in zip(alone, together):
            torch.testing.assert_close(a, t[:1], rtol=1e-4, atol=1e-4)
        shared = build(alpha_scope='batch').eval()
        assert (shared(x)[0][:1] - shared(x[:1])[0]).abs().max() > 1e-3


def test_norm_eval():
    model = build(norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6
    model(image(2, 3, 64, 64))
    assert not any(m.training or m.num_batches_tracked for m in norms)
    assert all(m.weight.requires_grad for m in norms)
    assert all(m.training for m in model.modules() if isinstance(m, nn.LayerNorm))
    free = build().train()
    free(image(2, 3, 64, 64))
    assert all(m.num_batches_tracked == 1 for m in free.modules() if isinstance(m, nn.BatchNorm2d))


def test_zero_padding_gives_finite_outputs():
    """Detection batches are zero-padded, which yields many identical landmarks."""
    x = image(2, 3, 192, 192)
    x[:, :, 60:] = 0
    maps = build()(x)
    sum(m.square().mean() for m in maps).backward()
    assert all(m.isfinite().all() for m in maps)


def test_49_landmarks_leave_224x224_unchanged():
    """A limited model also loads the weights of an unlimited one."""
    unlimited, limited = build(img_size=224).eval(), build(img_size=224, num_landmarks=49).eval()
    limited.load_state_dict(unlimited.state_dict(), strict=True)
    with torch.no_grad():
        for size, same in ((224, True), (288, False)):
            x = image(1, 3, size, size)
            maps, others = unlimited(x), limited(x)
            assert all(torch.equal(m, o) for m, o in zip(maps, others)) == same


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(landmarks='avg_pool'),
        dict(landmarks='random'),
        dict(landmarks='biased'),
        dict(num_landmarks=4),
        dict(num_landmarks=9, ratios=(5, 3, 1)),
        dict(solver='iteration'),
        dict(solver='ridge'),
        dict(solver='ridge', sym_norm=False),
    ],
)
def test_options_train_on_any_size(kwargs):
    model = build(**kwargs)
    sum(m.square().mean() for m in model(image(2, 3, 97, 131))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('size', [(29, 45), (97, 131)])
@pytest.mark.parametrize('attention', RIVALS)
def test_rivals_train_on_any_size(attention, size):
    model = build(sym_norm=False, attention=attention, drop_path_rate=0.1).train()
    maps = model(image(2, 3, *size))
    assert [m.shape[2:] for m in maps] == [
        tuple(-(-side // stride) for side in size) for stride in (4, 8, 16, 32)
    ]
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('attention', RIVALS)
def test_everything_but_the_attention_is_the_same(attention):
    """The attention of stages 1-3 alone differs, in every size; a block per stage shows it."""

    def rest(model: SOFT) -> dict[str, torch.Size]:
        state = model.state_dict().items()
        return {n: t.shape for n, t in state if '.attn.' not in n or n.startswith('stages.3')}

    for arch in SOFT.arch_zoo:
        with torch.device('meta'):
            ours, soft = (
                SOFT(arch, attention=name, depths=(1, 1, 1, 1)) for name in (attention, 'gaussian')
            )
        assert {t.device.type for t in ours.state_dict().values()} == {'meta'}
        assert rest(ours) == rest(soft)
        for stage in ours.stages[:3]:
            assert {type(block.attn) for block in stage.blocks} == {ATTENTIONS[attention]}


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('attention', RIVALS)
def test_autocast_of_rivals(attention, dtype):
    """Within 5% of fp32 on average, as for the other backbones."""
    model = build(sym_norm=False, attention=attention).train()
    with torch.autocast('cpu', dtype):
        maps = model(image(2, 3, 64, 64))
        sum(m.float().square().mean() for m in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    exact = build(sym_norm=False, attention=attention).train()(image(2, 3, 64, 64))
    for got, expected in zip(maps, exact):
        assert (got - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize('attention', ['softmax', 'performer'])
def test_rivals_without_landmarks_take_one_pixel(attention):
    maps = build(sym_norm=False, attention=attention).eval()(image(1, 3, 1, 1))
    assert all(m.shape[2:] == (1, 1) and m.isfinite().all() for m in maps)


@pytest.mark.parametrize('attention', ['linformer', 'nystromformer'])
def test_rivals_need_a_landmark(attention):
    with pytest.raises(ValueError, match='at least 13×13 pixels, for one landmark per stage'):
        build(sym_norm=False, attention=attention, ratios=(4, 2, 1))(image(1, 3, 12, 64))


@pytest.mark.parametrize('attention', ['linformer', 'nystromformer'])
def test_49_landmarks_leave_rivals_at_224x224_unchanged(attention):
    models = [
        build(sym_norm=False, attention=attention, img_size=224, num_landmarks=number).eval()
        for number in (None, 49)
    ]
    with torch.no_grad():
        for size, same in ((224, True), (288, False)):
            maps, others = (model(image(1, 3, size, size)) for model in models)
            assert all(torch.equal(m, o) for m, o in zip(maps, others)) == same


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(attention='flash'), r"attention must be one of \['gaussian', .*\], got 'flash'"),
        (dict(attention=['softmax']), r'attention must be one of'),
        (dict(attention='softmax', sym_norm=True), "sym_norm=True does not apply to .*'softmax'"),
        (dict(attention='linformer', solver='ridge'), "solver='ridge' does not apply to"),
        (dict(attention='nystromformer', landmarks='conv2'), "landmarks='conv2' does not apply"),
        (dict(attention='performer', num_landmarks=49), 'num_landmarks=49 does not apply'),
        (dict(attention='performer', ratios=(8, 4, 1)), r'ratios=\(8, 4, 1\) does not apply'),
        (dict(attention='linformer', num_landmarks=0), 'must be None or at least 1, got 0'),
        (dict(ratios=(8, 4)), r'ratios must be three integers >= 1, got \(8, 4\)'),
        (dict(ratios=(8, 4, 0)), r'ratios must be three integers >= 1, got \(8, 4, 0\)'),
        (dict(ratios=8), 'ratios must be three integers >= 1, got 8'),
    ],
)
def test_arguments_of_the_attention_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**{'sym_norm': False, **kwargs})


def test_newton_and_iteration_agree():
    """On matrices large enough that 'newton' does not run the iteration."""
    x = image(1, 3, 448, 448)
    with torch.no_grad():
        ours, theirs = (build(solver=solver).eval()(x) for solver in ('newton', 'iteration'))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
