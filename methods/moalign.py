"""MoAlign (motion-centric representation alignment): the motion subspace of stage 1 and the projector of
stage 2.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .relational import Grid, SpaceToPatches, fit, in_frames, to_tokens, to_volume

FLOW_SIZE = (128, 192)
"""Height and width of the flow that stage 1 predicts."""


class MotionCompressor(nn.Module):
    """M of eq 3: a teacher's features -> a motion subspace, `B 768 F H W` -> `B 64 F H W`.

    A temporal convolution (3, 1, 1) and a pointwise one, SiLU after both (appendix A.3).
    """

    def __init__(self, channels: int = 768, hidden: int = 256, motion: int = 64) -> None:
        super().__init__()
        self.temporal = nn.Conv3d(channels, hidden, (3, 1, 1), padding=(1, 0, 0))
        self.pointwise = nn.Conv3d(hidden, motion, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`B C F H W` -> `B M F H W`."""
        return functional.silu(self.pointwise(functional.silu(self.temporal(features))))


class FlowDecoder(nn.Module):
    """F of eq 4: the motion subspace -> optical flow between consecutive feature frames, `B 64 F H W` -> `B 2
    F-1 h w`.

    A convolution (2, 3, 3) that takes F to F - 1, two transposed convolutions that double the sides twice,
    one convolution to two channels, and a trilinear resize (appendix A.3). The width of the first
    convolution's output is not stated; it is the subspace's own here.
    """

    def __init__(self, motion: int = 64, size: tuple[int, int] = FLOW_SIZE) -> None:
        super().__init__()
        self.size = tuple(size)
        self.between = nn.Conv3d(motion, motion, (2, 3, 3), padding=(0, 1, 1))
        self.up1 = nn.ConvTranspose3d(motion, 32, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))
        self.up2 = nn.ConvTranspose3d(32, 16, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))
        self.out = nn.Conv3d(16, 2, 3, padding=1)

    def forward(self, motion: Tensor) -> Tensor:
        """`B M F H W` -> `B 2 F-1 h w` in pixels of that size. Raises ValueError for a single frame."""
        if motion.shape[2] < 2:
            raise ValueError(f"flow needs at least 2 feature frames, not {motion.shape[2]}.")
        for layer in (self.between, self.up1, self.up2):
            motion = functional.relu(layer(motion))
        return fit(self.out(motion), (motion.shape[2], *self.size))


class MotionHead(nn.Module):
    """Stage 1 whole: compressor and flow decoder. Stage 2 uses the compressor alone."""

    def __init__(
        self, channels: int = 768, hidden: int = 256, motion: int = 64, size: tuple[int, int] = FLOW_SIZE
    ) -> None:
        super().__init__()
        self.compressor = MotionCompressor(channels, hidden, motion)
        self.decoder = FlowDecoder(motion, size)

    def forward(self, features: Tensor) -> Tensor:
        """Teacher features `B C F H W` -> flow `B 2 F-1 h w`."""
        return self.decoder(self.compressor(features))


def flow_loss(predicted: Tensor, flow: Tensor) -> Tensor:
    """Eq 4: mean absolute difference of two flows `B 2 F h w`. Raises ValueError where the shapes differ."""
    if predicted.shape != flow.shape:
        raise ValueError(
            f"predicted flow {tuple(predicted.shape)} and RAFT's {tuple(flow.shape)} must have the same "
            f"shape."
        )
    return (predicted.float() - flow.float()).abs().mean()


class MotionProjector(nn.Module):
    """P of section 3.2: a generator's tokens -> the motion subspace's grid (appendix A.4).

    Temporal convolution (3, 1, 1) to 256, SiLU, pointwise to 64, SiLU, linear in time, one convolution in
    space of kernel and stride 3 (`relational.SpaceToPatches`).
    """

    def __init__(self, channels: int, motion: int = 64, hidden: int = 256, stride: int = 3) -> None:
        """channels: the tapped block's width; stride: tokens along a side of the teacher's patch."""
        super().__init__()
        self.temporal = nn.Conv3d(channels, hidden, (3, 1, 1), padding=(1, 0, 0))
        self.pointwise = nn.Conv3d(hidden, motion, 1)
        self.resize = SpaceToPatches(motion, stride)

    def forward(self, tokens: Tensor, grid: Grid, target: Grid) -> Tensor:
        """tokens `B N C` on `grid` -> `B N' M` on `target`."""
        volume = functional.silu(self.temporal(to_volume(tokens, grid)))
        volume = functional.silu(self.pointwise(volume))
        return to_tokens(self.resize(in_frames(volume, target[0]), target))
