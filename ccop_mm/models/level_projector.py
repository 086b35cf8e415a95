"""Selection of the pooled levels of a neck, and projection of their channels to a common number."""

from collections.abc import Sequence

from torch import Tensor, nn


class LevelProjector(nn.Module):
    """Selects levels from the outputs of a neck. If their channels differ, a 1x1 convolution per level equalizes them.

    Args:
        indices (Sequence[int]): Indices of the selected outputs, from fine to coarse.
        in_channels (Sequence[int]): Channels of each selected output.
        out_channels (int): Channels of the result; the common number of ``in_channels`` if there is one.
    """

    def __init__(self, indices: Sequence[int], in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.indices = tuple(indices)
        equal = set(in_channels) == {out_channels}
        self.convs = nn.ModuleList() if equal else nn.ModuleList(nn.Conv2d(n, out_channels, 1) for n in in_channels)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Selects and projects maps.

        Args:
            pyramid (Sequence[Tensor]): Outputs of the neck, each ``(B, C_l, H_l, W_l)``.

        Returns:
            tuple[Tensor, ...]: The selected levels, each ``(B, C, H_l, W_l)``.
        """
        levels = [pyramid[index] for index in self.indices]
        if self.convs:
            levels = [conv(level) for conv, level in zip(self.convs, levels, strict=True)]
        return tuple(levels)
