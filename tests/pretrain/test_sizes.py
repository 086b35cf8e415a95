"""Rules for epochs, learning rate, warm-up, momentum, batch and views."""

import math

import pytest

from ccop_mm.models.encoder_layout import EncoderLayout
from ccop_mm.pretrain.sizes import (
    choose_batch_size,
    choose_epochs,
    choose_momentum,
    choose_sizes,
    choose_view_size,
    choose_warmup,
)
from ccop_mm.utils.errors import InputError

GIB = 2**30
RTMDET = EncoderLayout((8, 16, 32), (96, 96, 96), 384)
FASTER_RCNN = EncoderLayout((4, 8, 16, 32, 64), (256,) * 5, 2048)
RETINANET = EncoderLayout((8, 16, 32, 64, 128), (256,) * 5, 2048)


def test_the_papers_images_and_batch_give_the_papers_recipe():
    sizes = choose_sizes(118_287, mean_proposals=48, batch_size=256)
    assert (sizes.epochs, sizes.steps, sizes.lr, sizes.momentum) == (800, 800 * 462, 0.3, 0.999)
    assert (sizes.optimizer, sizes.weight_decay) == ('SGD', 1e-4)
    assert (sizes.queue_len, sizes.object_queue_len) == (65_536, 65_536)


@pytest.mark.parametrize(
    ('num_images', 'batch_size', 'continued', 'epochs'),
    [
        (50_000, 256, False, 800),
        (1_182_870, 256, False, 80),  # the paper's number of images
        (2_881, 64, False, 800),
        (31, 16, False, 2000),  # one step per epoch
        (100, 32, False, 800),
        (100, 64, False, 2000),
        (118_287, 256, True, 100),
        (31, 16, True, 1000),
        (10**9, 256, True, 1),
    ],
)
def test_epochs(num_images, batch_size, continued, epochs):
    assert choose_epochs(num_images, batch_size, continued) == epochs


@pytest.mark.parametrize('batch_size', [2, 16, 64, 256])
@pytest.mark.parametrize('continued', [False, True])
def test_number_of_steps_is_bounded(batch_size, continued):
    for num_images in (256, 1000, 20_000, 118_287, 10**6, 10**7):
        steps = choose_epochs(num_images, batch_size, continued) * (num_images // batch_size)
        limit = 800 * 118_287 / batch_size * (1 / 8 if continued else 1)
        assert steps >= (1000 if continued else 2000)
        # Rounding changes the number of epochs by at most one half, and there is at least one.
        assert steps <= limit + num_images / batch_size


def test_given_epochs_are_used():
    sizes = choose_sizes(1000, mean_proposals=10, batch_size=10, epochs=3)
    assert (sizes.epochs, sizes.steps) == (3, 300)


@pytest.mark.parametrize('batch_size', [8, 32, 64, 512])
def test_learning_rate_by_the_batch(batch_size):
    scratch = choose_sizes(1000, 10, batch_size, epochs=1)
    continued = choose_sizes(1000, 10, batch_size, epochs=1, continued=True)
    adamw = choose_sizes(1000, 10, batch_size, epochs=1, batch_norm=False)
    assert scratch.lr == pytest.approx(0.3 * batch_size / 256, rel=5e-3)
    assert continued.lr == pytest.approx(0.03 * batch_size / 256, rel=5e-3)
    assert adamw.lr == pytest.approx(0.001 * (batch_size / 512) ** 0.5, rel=5e-3)
    assert (adamw.optimizer, adamw.weight_decay) == ('AdamW', 0.05)


def test_warmup():
    assert [choose_warmup(steps) for steps in (4, 9, 10, 540, 2000, 10_000, 370_000)] == [0, 0, 2, 100, 100, 500, 1000]


def test_key_encoder_averages_over_a_tenth_of_the_run():
    for steps in (1, 300, 999, 1000, 2345, 9_999, 10_000, 370_000):
        window = 1 / (1 - choose_momentum(steps))
        assert window == pytest.approx(min(max(steps / 10, 100), 1000), rel=0.06)  # of rounding m
    assert (choose_momentum(300), choose_momentum(370_000)) == (0.99, 0.999)


@pytest.mark.parametrize(
    ('requested', 'num_images', 'gpu_memory', 'expected'),
    [
        (None, 10_000, None, 32),
        (None, 31, None, 16),
        (None, 2, None, 2),
        (None, 10_000, 16 * GIB, 64),
        (None, 10_000, 24 * GIB, 64),
        (None, 10_000, 40 * GIB, 128),
        (None, 10_000, 141 * GIB, 256),
        (None, 100, 141 * GIB, 64),
        (None, 10_000, GIB // 8, 2),
        (48, 10_000, None, 48),
        (31, 31, None, 31),
    ],
)
def test_batch_size(requested, num_images, gpu_memory, expected):
    assert choose_batch_size(requested, num_images, gpu_memory) == expected


@pytest.mark.parametrize(('requested', 'num_images'), [(32, 31), (None, 1)])
def test_fewer_images_than_a_batch(requested, num_images):
    with pytest.raises(InputError, match=str(num_images)):
        choose_batch_size(requested, num_images, None)


@pytest.mark.parametrize(
    ('requested', 'short_side', 'layout', 'divisor', 'expected'),
    [
        (None, 480, RTMDET, 1, 224),
        (None, 224, FASTER_RCNN, 32, 224),
        (None, 223, FASTER_RCNN, 32, 192),
        (None, 96, RTMDET, 1, 96),
        (None, 480, RETINANET, 128, 256),  # NAS-FPN
        (160, 480, RTMDET, 32, 160),
        (112, 480, RTMDET, 32, 128),
        (8, 480, RTMDET, 32, 64),  # 5 x 5 cells of stride 8
        (110, 112, RTMDET, 1, 96),  # not larger than the images
        (100, 480, EncoderLayout((64, 128), (8, 8), 8), 1, 320),
    ],
)
def test_view_size(requested, short_side, layout, divisor, expected):
    size, note = choose_view_size(requested, [short_side] * 3, layout, divisor)
    assert size == expected
    assert bool(note) == (size != (requested or 224))
    if note:
        assert str(size) in note


def test_batch_size_of_several_gpus():
    """At most 256 images, and at most as many as there are, over all processes."""
    assert choose_batch_size(None, 10_000, 141 * GIB, 8) == 32
    assert choose_batch_size(None, 100, 141 * GIB, 8) == 8
    assert choose_batch_size(12, 100, 141 * GIB, 8) == 12
    with pytest.raises(InputError, match='batch of 104'):
        choose_batch_size(13, 100, 141 * GIB, 8)


def test_sizes_without_a_warmup():
    assert 'warm-up' not in str(choose_sizes(8, 10, 4, epochs=2))
    assert 'after 100 warm-up steps' in str(choose_sizes(8, 10, 4, epochs=500))


def test_views_depend_on_the_median_image():
    assert choose_view_size(None, [100, 100, 300, 300, 300], RTMDET)[0] == 224
    assert choose_view_size(None, [100, 100, 100, 300, 300], RTMDET)[0] == 96


@pytest.mark.parametrize(
    ('requested', 'short_side', 'divisor', 'named'),
    [(224, 200, 1, '200'), (None, 60, 1, '64'), (None, 100, 128, '128')],
)
def test_images_smaller_than_the_views(requested, short_side, divisor, named):
    with pytest.raises(InputError, match=named):
        choose_view_size(requested, [short_side] * 5, RTMDET, divisor)


@pytest.mark.parametrize('layout', [RTMDET, FASTER_RCNN, RETINANET])
@pytest.mark.parametrize('divisor', [1, 32, 64])
def test_every_chosen_view_is_usable(layout, divisor):
    for requested in [None, *range(1, 400, 13)]:
        for side in range(32, 500, 17):
            try:
                size, _ = choose_view_size(requested, [side], layout, divisor)
            except InputError:
                assert side < max(requested or 0, 64 * math.ceil(divisor / 32))
                continue
            assert size <= side and size % divisor == 0 and size % 32 == 0
            assert layout.pooled_strides(size)


def test_sizes_are_one_line():
    text = str(choose_sizes(1000, 10, 32))
    assert '\n' not in text
    assert all(part in text for part in ('800 epochs', '24800 steps', '0.0375', 'SGD'))
