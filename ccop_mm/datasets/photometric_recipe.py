"""What is drawn for the photometric part of a view, and how."""

from dataclasses import dataclass

import numpy as np
from mmcv.transforms import BaseTransform, RandomApply, RandomGrayscale
from mmselfsup.datasets.transforms import ColorJitter, RandomGaussianBlur, RandomSolarize

from ccop_mm import photometric

#: The order in which the photometric part works, that of MoCo v2 and of BYOL.
STAGES = ('ColorJitter', 'RandomGrayscale', 'RandomGaussianBlur', 'RandomSolarize')

#: Red, green and blue as OpenCV orders them.
LUMA_BGR = (0.114, 0.587, 0.2989)


@dataclass
class PhotometricRecipe:
    """Probabilities and ranges; what is left out changes nothing.

    Args:
        factors (list): Ranges ``(low, high)`` of brightness, contrast, saturation and hue; None: it stays as it is.
        jitter (float): Probability of the four, together.
        grey (float): Probability of a grey view.
        blur (float): Probability of a blur.
        sigma (tuple[float, float]): Range of its sigma in pixels.
        solarize (float): Probability of solarization.
        threshold (float): Its threshold in grey levels.
    """

    factors: list
    jitter: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.0, 0.0)
    solarize: float = 0.0
    threshold: float = 128

    @classmethod
    def of(cls, transforms: list[BaseTransform]) -> 'PhotometricRecipe':
        """Reads the recipe off the host libraries' transforms, which do the same per image.

        Args:
            transforms (list[BaseTransform]): Any of ``ColorJitter`` (by itself or in a ``RandomApply``),
                ``RandomGrayscale``, ``RandomGaussianBlur`` and ``RandomSolarize``, in this order.

        Raises:
            ValueError: There is another one, an order or an argument that the batched form does not have.
        """
        recipe, last = cls(factors=[None] * 4), -1
        for transform in transforms:
            probability = 1.0
            if isinstance(transform, RandomApply) and len(transform.transforms.transforms) == 1:
                probability, (transform,) = transform.prob, transform.transforms.transforms
            name = type(transform).__name__
            stage = STAGES.index(name) if name in STAGES else None
            if stage is None or stage <= last:
                raise ValueError(
                    f'{name} cannot be left to the device there: it does {", ".join(STAGES)}, each at most once and in '
                    'this order; TwoObjectViews does any others per image'
                )
            last = stage
            recipe._take(transform, probability)
        return recipe

    def _take(self, transform: BaseTransform, probability: float) -> None:
        if isinstance(transform, ColorJitter):
            self.jitter = probability
            self.factors = [transform.brightness, transform.contrast, transform.saturation, transform.hue]
        elif isinstance(transform, RandomGrayscale):
            weights = tuple(transform.channel_weights)
            if not transform.keep_channels or not np.allclose(weights, LUMA_BGR, atol=2e-4):
                raise ValueError(f'RandomGrayscale needs keep_channels=True, channel_weights={LUMA_BGR}; got {weights}')
            self.grey = probability * transform.prob
        elif isinstance(transform, RandomGaussianBlur):
            self.blur = probability * transform.prob
            self.sigma = (transform.sigma_min, transform.sigma_max)
        elif isinstance(transform, RandomSolarize):
            self.solarize = probability * transform.prob
            self.threshold = transform.threshold

    def draw(self) -> np.ndarray:
        """One view's parameters, float32 ``(NUM_PARAMS,)``, from numpy's global generator.

        As many numbers are taken whatever applies, so that a probability can be changed and all else stays.
        """
        params = np.array(photometric.NEUTRAL, dtype=np.float32)
        uniform, order = np.random.random(9), np.random.permutation(4)
        if uniform[0] < self.jitter:
            params[photometric.ORDER] = order
            for number, limits in enumerate(self.factors):
                if limits is not None:
                    low, high = limits
                    params[photometric.FACTORS.start + number] = low + (high - low) * uniform[1 + number]
        params[photometric.GREY] = uniform[5] < self.grey
        if uniform[6] < self.blur:
            low, high = self.sigma
            params[photometric.SIGMA] = low + (high - low) * uniform[7]
        if uniform[8] < self.solarize:
            params[photometric.THRESHOLD] = self.threshold
        return params
