"""Sampling of the photometric augmentation parameters of a view."""

from dataclasses import dataclass

import numpy as np
from mmcv.transforms import BaseTransform, RandomApply, RandomGrayscale
from mmselfsup.datasets.transforms import ColorJitter, RandomGaussianBlur, RandomSolarize

from ccop_mm.models import batch_photometric as photometric

#: Order in which the photometric transforms are applied, as in MoCo v2 and BYOL.
STAGES = ('ColorJitter', 'RandomGrayscale', 'RandomGaussianBlur', 'RandomSolarize')

#: Luma weights in OpenCV's channel order (blue, green, red).
LUMA_BGR = photometric.LUMA[::-1]


@dataclass
class PhotometricRecipe:
    """Probabilities and parameter ranges of the photometric augmentation; by default nothing is changed.

    Args:
        factors (list): Ranges ``(low, high)`` of the brightness, contrast, saturation and hue factors, in this order.
            None disables an operation.
        jitter_prob (float): Probability of color jitter, that is of all four operations together.
        gray_prob (float): Probability of conversion to grayscale.
        blur_prob (float): Probability of Gaussian blur.
        blur_sigma (tuple[float, float]): Range of the standard deviation of the blur in pixels.
        solarize_prob (float): Probability of solarization.
        solarize_threshold (float): Solarization threshold in gray levels.
    """

    factors: list
    jitter_prob: float = 0.0
    gray_prob: float = 0.0
    blur_prob: float = 0.0
    blur_sigma: tuple[float, float] = (0.0, 0.0)
    solarize_prob: float = 0.0
    solarize_threshold: float = 128

    @classmethod
    def from_transforms(cls, transforms: list[BaseTransform]) -> 'PhotometricRecipe':
        """Builds the recipe from the upstream transforms that apply the same augmentation image by image.

        Args:
            transforms (list[BaseTransform]): Any of ``ColorJitter`` (optionally inside a ``RandomApply``),
                ``RandomGrayscale``, ``RandomGaussianBlur`` and ``RandomSolarize``, in this order.

        Raises:
            ValueError: If a transform, its position or one of its arguments has no batched equivalent.
        """
        recipe, last_stage = cls(factors=[None] * 4), -1
        for transform in transforms:
            probability = 1.0
            if isinstance(transform, RandomApply) and len(transform.transforms.transforms) == 1:
                probability, (transform,) = transform.prob, transform.transforms.transforms
            name = type(transform).__name__
            stage = STAGES.index(name) if name in STAGES else None
            if stage is None or stage <= last_stage:
                raise ValueError(
                    f'{name} cannot be applied on the training device at this position; supported are '
                    f'{", ".join(STAGES)}, each at most once and in this order. Use TwoObjectViews to apply other '
                    'transforms image by image'
                )
            last_stage = stage
            recipe._set_stage(transform, probability)
        return recipe

    def _set_stage(self, transform: BaseTransform, probability: float) -> None:
        """Copies the arguments of one transform that is applied with the given probability."""
        if isinstance(transform, ColorJitter):
            self.jitter_prob = probability
            self.factors = [transform.brightness, transform.contrast, transform.saturation, transform.hue]
        elif isinstance(transform, RandomGrayscale):
            weights = tuple(transform.channel_weights)
            if not transform.keep_channels or not np.allclose(weights, LUMA_BGR, atol=2e-4):
                raise ValueError(
                    f'RandomGrayscale must have keep_channels=True and channel_weights={LUMA_BGR}, '
                    f'got keep_channels={transform.keep_channels} and channel_weights={weights}'
                )
            self.gray_prob = probability * transform.prob
        elif isinstance(transform, RandomGaussianBlur):
            self.blur_prob = probability * transform.prob
            self.blur_sigma = (transform.sigma_min, transform.sigma_max)
        elif isinstance(transform, RandomSolarize):
            self.solarize_prob = probability * transform.prob
            self.solarize_threshold = transform.threshold

    def sample(self) -> np.ndarray:
        """Samples the parameters of one view from numpy's global generator.

        The number of random values consumed does not depend on which operations are applied, so that changing one
        probability leaves all other parameters unchanged.

        Returns:
            np.ndarray: ``(NUM_PARAMS,)`` float32, in the layout of :mod:`ccop_mm.models.batch_photometric`.
        """
        params = np.array(photometric.NEUTRAL, dtype=np.float32)
        uniform, order = np.random.random(9), np.random.permutation(4)
        if uniform[0] < self.jitter_prob:
            params[photometric.ORDER] = order
            for operation, limits in enumerate(self.factors):
                if limits is not None:
                    low, high = limits
                    params[photometric.FACTORS.start + operation] = low + (high - low) * uniform[1 + operation]
        params[photometric.GRAY] = uniform[5] < self.gray_prob
        if uniform[6] < self.blur_prob:
            low, high = self.blur_sigma
            params[photometric.SIGMA] = low + (high - low) * uniform[7]
        if uniform[8] < self.solarize_prob:
            params[photometric.THRESHOLD] = self.solarize_threshold
        return params
