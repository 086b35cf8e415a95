"""Sizes of a pre-training that depend on the images, the batch and the device, as pure functions.

Sources of the rules:

- *Paper*: CCOP trains 800 epochs of the 118,287 images of COCO train2017 with SGD, 0.3 at a batch size of 256 (arXiv
  2111.13651). The learning rate is linear in the batch size (Goyal et al., arXiv 1706.02677).
- *Small study* of this project (docs/results.md): on 2,881 images, 540 steps of 64 images reach most of the gain.
  Without a warm-up the image embeddings collapse within 200 steps; one of 90 steps prevents it.
- *LightlyTrain's documentation* recommends 200 to 2,000 epochs below 100,000 images and 100 to 500 up to a million.
- *Continued pre-training*: Reed et al. (arXiv 2103.12718) report a convergence up to 80 times faster from the weights
  of an earlier pre-training.
- *Networks without batch normalization* (Swin, PVT, ConvNeXt) are trained with AdamW: 0.001 at a batch size of 512 with
  a weight decay of 0.05, as MoBY trains Swin (Xie et al., arXiv 2105.04553), times the square root of the ratio of the
  batch sizes (Malladi et al., arXiv 2205.10287).
- *Key encoder*: m = 0.999 averages over 1,000 steps. MoCo (He et al., arXiv 1911.05722) loses little with 0.99 and more
  below. An average over the larger part of a short run would mostly contain the initial weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ccop_mm.engine.queue_lengths import FRACTION_IN_BOTH_VIEWS
from ccop_mm.models.encoder_layout import MAX_STRIDE_FRACTION, EncoderLayout
from ccop_mm.models.queue import suggest_lengths
from ccop_mm.utils.errors import InputError

#: The paper's images, epochs, total batch size and learning rate.
PAPER_IMAGES, PAPER_EPOCHS, PAPER_BATCH, PAPER_LR = 118_287, 800, 256, 0.3
#: Weight decay with SGD.
WEIGHT_DECAY = 1e-4
#: The same of MoBY, with AdamW.
ADAMW_BATCH, ADAMW_LR, ADAMW_WEIGHT_DECAY = 512, 0.001, 0.05
#: Smallest number of steps with random weights, and with pre-trained ones.
MIN_STEPS, MIN_CONTINUED_STEPS = 2000, 1000
#: Continued pre-training: fraction of the epochs, and of the learning rate.
CONTINUED_EPOCHS, CONTINUED_LR = 1 / 8, 1 / 10
#: Warm-up: fraction of the steps, and its bounds.
WARMUP_FRACTION, MIN_WARMUP, MAX_WARMUP = 0.05, 100, 1000
#: Steps over which the key encoder averages: fraction of the run, and bounds (m = 0.99 and 0.999).
KEY_FRACTION, MIN_KEY_STEPS, MAX_KEY_STEPS = 0.1, 100, 1000

#: Side of the paper's views in pixels.
VIEW_SIZE = 224
#: Stride up to which a map is computed by layers that need sides divisible by it. Coarser levels of mmdet's necks come
#: from strided layers, which accept any size.
MAX_DIVISOR_STRIDE = 32

#: Batch size on a CPU, per 16 GiB of memory on a GPU, and at most.
CPU_BATCH, GPU_BATCH_PER_16_GIB, MAX_BATCH = 32, 64, PAPER_BATCH
#: Fewest images per step and process: one for each of the two groups of batch statistics.
MIN_BATCH = 2


@dataclass(frozen=True)
class Sizes:
    """Sizes of a pre-training; ``str()`` formats them in one line.

    Args:
        num_images (int): Number of images.
        batch_size (int): Images per step, over all processes.
        epochs (int): Number of epochs.
        steps (int): Number of steps.
        optimizer (str): ``'SGD'`` or ``'AdamW'``.
        lr (float): Learning rate after the warm-up.
        weight_decay (float): Weight decay.
        warmup (int): Number of warm-up steps; 0 without a warm-up.
        momentum (float): m of Eq. 2, of the key encoder.
        queue_len (int): Keys in the image queue.
        object_queue_len (int): Keys in the object queue.
    """

    num_images: int
    batch_size: int
    epochs: int
    steps: int
    optimizer: str
    lr: float
    weight_decay: float
    warmup: int
    momentum: float
    queue_len: int
    object_queue_len: int

    def __str__(self) -> str:
        warmup = f' after {self.warmup} warm-up steps' if self.warmup else ''
        return (
            f'{self.length}, {self.optimizer} with learning rate {self.lr:g}{warmup}, key momentum {self.momentum:g}, '
            f'queues of {self.queue_len} images and {self.object_queue_len} objects'
        )

    @property
    def length(self) -> str:
        """Epochs, images, steps and batch size, formatted in one line."""
        return f'{self.epochs} epochs of {self.num_images} images, {self.steps} steps of batch size {self.batch_size}'


def choose_sizes(
    num_images: int,
    mean_proposals: float,
    batch_size: int,
    epochs: int | None = None,
    continued: bool = False,
    batch_norm: bool = True,
) -> Sizes:
    """Chooses the sizes of a pre-training.

    Args:
        num_images (int): Number of images.
        mean_proposals (float): Mean number of proposals that are used per image.
        batch_size (int): Images per step, over all processes.
        epochs (int, optional): Number of epochs; :func:`choose_epochs` by default.
        continued (bool): Whether the training starts from pre-trained weights.
        batch_norm (bool): Whether the backbone has batch normalization.
    """
    if epochs is None:
        epochs = choose_epochs(num_images, batch_size, continued)
    steps = epochs * (num_images // batch_size)
    if batch_norm:
        optimizer, lr, weight_decay = 'SGD', PAPER_LR * batch_size / PAPER_BATCH, WEIGHT_DECAY
    else:
        optimizer, lr, weight_decay = 'AdamW', ADAMW_LR * math.sqrt(batch_size / ADAMW_BATCH), ADAMW_WEIGHT_DECAY
    lr *= CONTINUED_LR if continued else 1
    queue_len, object_queue_len = suggest_lengths(num_images, FRACTION_IN_BOTH_VIEWS * mean_proposals)
    return Sizes(
        num_images=num_images,
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        optimizer=optimizer,
        lr=float(f'{lr:.3g}'),
        weight_decay=weight_decay,
        warmup=choose_warmup(steps),
        momentum=choose_momentum(steps),
        queue_len=queue_len,
        object_queue_len=object_queue_len,
    )


def choose_epochs(num_images: int, batch_size: int, continued: bool = False) -> int:
    """Chooses the number of epochs.

    Up to the paper's 118,287 images, its 800 epochs; with more images, fewer epochs, such that the number of samples is
    that of the paper. With pre-trained weights an eighth of that. With few images the number of epochs is raised until
    there are at least :data:`MIN_STEPS` steps.

    Args:
        num_images (int): Number of images.
        batch_size (int): Images per step, at most ``num_images``.
        continued (bool): Whether the training starts from pre-trained weights.
    """
    epochs = PAPER_EPOCHS * min(1, PAPER_IMAGES / num_images) * (CONTINUED_EPOCHS if continued else 1)
    min_steps = MIN_CONTINUED_STEPS if continued else MIN_STEPS
    return max(1, round(epochs), math.ceil(min_steps / (num_images // batch_size)))


def choose_warmup(steps: int) -> int:
    """Chooses the number of warm-up steps: 5 %, from 100 to 1,000, at most a fifth; 0 if that is a single step."""
    warmup = min(max(round(WARMUP_FRACTION * steps), MIN_WARMUP), MAX_WARMUP, steps // 5)
    return warmup if warmup > 1 else 0


def choose_momentum(steps: int) -> float:
    """Chooses m of Eq. 2, which averages over 1 / (1 - m) steps: a tenth of the run, from 100 to 1,000 steps."""
    return round(1 - 1 / min(max(KEY_FRACTION * steps, MIN_KEY_STEPS), MAX_KEY_STEPS), 4)


def choose_batch_size(requested: int | None, num_images: int, gpu_memory: int | None, num_gpus: int = 1) -> int:
    """Chooses the batch size of each process.

    On a CPU 32 images. On a GPU 64 per 16 GiB of its memory, rounded down to a power of two, and at most the paper's
    256 over all processes: ResNet-50 with an FPN needs about 0.15 GB per image. With few images, the largest power of
    two with which a step of all processes does not exceed the number of images.

    Args:
        requested (int, optional): Value to check instead.
        num_images (int): Number of images.
        gpu_memory (int, optional): Bytes of memory of the GPU; None on a CPU.
        num_gpus (int): Number of processes.

    Raises:
        InputError: There are fewer images than a batch.
    """
    smallest = (requested or MIN_BATCH) * num_gpus
    if num_images < smallest:
        raise InputError(
            f'there are {num_images} images, fewer than a batch of {smallest}: pass more images'
            + (' or a smaller --batch-size' if requested else '')
        )
    if requested is not None:
        return requested
    batch = CPU_BATCH if gpu_memory is None else max(GPU_BATCH_PER_16_GIB * gpu_memory / 2**34, MIN_BATCH)
    return 2 ** int(math.log2(max(min(batch, MAX_BATCH / num_gpus, num_images / num_gpus), MIN_BATCH)))


def choose_view_size(
    requested: int | None, short_sides: Sequence[int], layout: EncoderLayout, pad_size_divisor: int = 1
) -> tuple[int, str]:
    """Chooses the side of the views.

    224 px as in the paper, or the median short side of the images if that is smaller. The side is rounded to a multiple
    of the detector's ``pad_size_divisor`` and of the coarsest stride up to 32, which PAFPN and others need. The finest
    level gets at least 5 x 5 cells.

    Args:
        requested (int, optional): Side in pixels to use instead of 224.
        short_sides (Sequence[int]): Short side of each image in pixels.
        layout (EncoderLayout): Layout of backbone and neck.
        pad_size_divisor (int): That of the detector's data preprocessor.

    Returns:
        tuple[int, str]: Side in pixels, and a line that explains why it is not the requested one or 224; '' if it is.

    Raises:
        InputError: The median short side is smaller than the requested views, or than the smallest possible ones.
    """
    finest = min(layout.strides)
    divisor = math.lcm(pad_size_divisor, max(s for s in layout.strides if s <= max(MAX_DIVISOR_STRIDE, finest)))
    smallest = math.ceil(round(finest / MAX_STRIDE_FRACTION) / divisor) * divisor
    median = sorted(short_sides)[len(short_sides) // 2]
    images = f'the median short side of the images is {median} px'
    if requested is not None and requested > median:
        raise InputError(f'{images}, less than views of {requested} px: pass larger images or a smaller --view-size')
    if smallest > median:
        raise InputError(f'{images}; this detector needs views, and therefore images, of at least {smallest} px')
    wanted = min(VIEW_SIZE, median) if requested is None else requested
    size = min(max(round(wanted / divisor) * divisor, smallest), median // divisor * divisor)
    reasons = [images] if requested is None and median < VIEW_SIZE else []
    if size != wanted:
        reasons.append(f'the detector needs a multiple of {divisor} and at least {smallest}')
    return size, f'views have {size} instead of {requested or VIEW_SIZE} px: {"; ".join(reasons)}' if reasons else ''
