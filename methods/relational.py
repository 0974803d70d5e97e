"""Relational alignment: make a generator's tokens relate to one another as a video encoder's tokens do.

REPA (arXiv 2410.06940), VideoREPA's token relation distillation TRD (arXiv 2505.23656), MoAlign's soft TRD,
TSA and M-TSA are one family. Features are `B N C`, N = F * H * W tokens in frame-major order, of any scale
(they are L2-normalised over C inside); `grid` is (F, H, W). The teacher is a constant: no gradient flows into
it. The heavy sums over N x N token pairs are in `kernels.relational`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.relational import relation_l1, tempered_kl

Grid = tuple[int, int, int]


# -- losses --------------------------------------------------------------------------------------------------


def repa(student: Tensor, teacher: Tensor) -> Tensor:
    """REPA: mean over tokens of 1 - cos(student, teacher). Scalar float32.

    student and teacher `B N C` of the same shape. Source: REPA eq 1 (MoAlign eq 1), plus 1 so that perfect
    alignment is 0.
    Raises ValueError where the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student tokens {tuple(student.shape)} and teacher tokens {tuple(teacher.shape)} differ in "
            f"shape."
        )
    return 1 - functional.cosine_similarity(_wide(student), _wide(teacher).detach(), dim=-1).mean()


def trd(student: Tensor, teacher: Tensor, grid: Grid, margin: float = 0.1, pooled: bool = True) -> Tensor:
    """Token relation distillation of VideoREPA. Scalar.

    pooled: one mean over all N x N pairs, as its code does (spatial / F + temporal in the terms of
    `relation_l1`); otherwise the sum of the spatial and the temporal mean, which is MoAlign's loss without
    decay. Differences below `margin` count as none.
    """
    spatial, temporal = relation_l1(student, teacher, grid, margin=margin)
    return (spatial / grid[0] if pooled else spatial) + temporal


def soft_trd(student: Tensor, teacher: Tensor, grid: Grid, decay: float = 10.0) -> Tensor:
    """MoAlign's soft relational alignment (eqs 5-8): spatial mean + temporal mean weighted by exp(-|f_i -
    f_j| / decay). Scalar."""
    spatial, temporal = relation_l1(student, teacher, grid, decay=None if math.isinf(decay) else decay)
    return spatial + temporal


def tsa(student: Tensor, teacher: Tensor, grid: Grid, temperature: float = 0.1) -> Tensor:
    """Tempered self-similarity alignment (TSA eqs 6-9): mean over queries i and frames f of KL(P_T[i, f] ||
    P_S[i, f]). Scalar."""
    return tempered_kl(student, teacher, grid, temperature)


def mtsa(student: Tensor, teacher: Tensor, grid: Grid, mask: Tensor, temperature: float = 0.1) -> Tensor:
    """Masked TSA (eq 13): the mean over the queries in `mask` (bool `B F H W`, as `motion_mask` gives) only.

    Scalar.
    """
    if mask.shape[1:] != tuple(grid):
        raise ValueError(
            f"the motion mask is {tuple(mask.shape[1:])} and the features' grid {tuple(grid)}; they must "
            f"agree."
        )
    return tempered_kl(student, teacher, grid, temperature, queries=mask.flatten(1))


# -- where things move ---------------------------------------------------------------------------------------


def motion_mask(video: Tensor, patch: tuple[int, int, int], keep: float = 0.2) -> Tensor:
    """Where a video moves: bool `B F H W`, exactly ceil(keep * H * W) tokens True in every frame.

    video: `B 3 T H W`, any scale; patch: the teacher's tubelet (P_t, P_h, P_w) in pixels. Frames, rows and
    columns that do not fill a tubelet are left out, as the teacher leaves them out. Tokens are ranked by the
    L1 difference of consecutive tubelets, the first frame by the second one's; ties go to the lower index.
    Source: TSA eqs 11-12. Raises ValueError for fewer than two tubelets in time, none in space, or `keep`
    outside (0, 1].
    """
    return top_share(motion_saliency(video, patch), keep)


def motion_saliency(video: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """L1 difference of consecutive tubelets, `B F H W` float32 (TSA eq 11).

    Arguments and errors as in `motion_mask`.
    """
    if video.ndim != 5:
        raise ValueError(f"a video must be B 3 T H W, not {tuple(video.shape)}.")
    frames, rows, columns = (size // p for size, p in zip(video.shape[2:], patch))
    if frames < 2 or rows < 1 or columns < 1:
        size = "x".join(map(str, video.shape[2:]))
        raise ValueError(
            f"a video of {size} (T H W) holds {frames}x{rows}x{columns} tubelets of {patch}; motion "
            f"needs 2x1x1."
        )
    video = video[:, :, : frames * patch[0], : rows * patch[1], : columns * patch[2]].float()
    # The difference of tubelets is the difference of frames P_t apart; its L1 norm is a mean over the tubelet
    # times its size.
    change = (video[:, :, patch[0] :] - video[:, :, : -patch[0]]).abs().sum(dim=1, keepdim=True)
    moved = functional.avg_pool3d(change, patch, stride=patch)[:, 0] * math.prod(patch)
    return torch.cat([moved[:, :1], moved], dim=1)


def top_share(saliency: Tensor, keep: float) -> Tensor:
    """bool `B F H W`: the ceil(keep * H * W) largest values of each frame, ties to the lower index. Raises
    ValueError for a bad `keep`."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}; it must be above 0 and at most 1.")
    flat = saliency.flatten(2)
    # Rounding guards against 0.2 * 10 = 2.0000000000000004 becoming 3.
    count = math.ceil(round(keep * flat.shape[2], 9))
    order = flat.argsort(dim=2, descending=True, stable=True)[:, :, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(2, order, True).view_as(saliency)


# -- student to teacher --------------------------------------------------------------------------------------


class TokenProjector(nn.Module):
    """The trainable map from a generator's tokens to a teacher's grid and width.

    A three-layer MLP with SiLU per token, linear interpolation in time, then one convolution in space that
    brings the grid to the teacher's (TSA section 5; VideoREPA). See `SpaceToPatches`.
    """

    def __init__(self, channels: int, out_channels: int, hidden: int = 2048, stride: int = 3) -> None:
        """channels: the tapped block's width; out_channels: the teacher's; stride: tokens along a side of the
        teacher's patch.
        """
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, out_channels),
        )
        self.resize = SpaceToPatches(out_channels, stride)

    def forward(self, tokens: Tensor, grid: Grid, target: Grid) -> Tensor:
        """tokens `B N C` on `grid` -> `B N' C'` on `target`."""
        volume = to_volume(self.mlp(tokens), grid)
        return to_tokens(self.resize(in_frames(volume, target[0]), target))


class SpaceToPatches(nn.Conv3d):
    """A convolution in space whose kernel is its stride: every output sees the tokens of its own patch and
    nothing else.

    Kernel and stride 3 bring CogVideoX's 30 x 45 tokens to VideoMAE's 10 x 15, and Wan's 30 x 52 to 10 x 17
    (VideoREPA's code has no padding). Where that is not the teacher's grid, `fit` does the rest.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, (1, stride, stride), stride=(1, stride, stride))

    def forward(self, volume: Tensor, target: Grid) -> Tensor:
        """`B C F H W` -> `B C *target`. Raises ValueError where the grid is smaller than one patch."""
        side = self.stride[1]
        if min(volume.shape[3:]) < side:
            size, most = "x".join(map(str, volume.shape[3:])), min(volume.shape[3:])
            raise ValueError(
                f"a grid of {size} tokens holds no patch of {side}x{side}; choose a stride of at most {most}."
            )
        return fit(super().forward(volume), target)


def to_volume(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """`B N C` -> `B C F H W`. Raises ValueError where N is not F * H * W."""
    if tokens.shape[1] != math.prod(grid):
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {'x'.join(map(str, grid))}.")
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))


def to_tokens(volume: Tensor) -> Tensor:
    """`B C F H W` -> `B N C`, frame-major."""
    return volume.flatten(2).transpose(1, 2)


def in_frames(volume: Tensor, frames: int) -> Tensor:
    """`B C F H W` on another number of frames: linear interpolation to more, means over equal spans of time
    to fewer.
    """
    return fit(volume, (frames, *volume.shape[3:]))


def fit(volume: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize of `B C F H W` to `grid`: means over what a new cell covers along the axes that shrink, then
    trilinear along those that grow; untouched where it fits."""
    grid = tuple(grid)
    smaller = tuple(map(min, volume.shape[2:], grid))
    if tuple(volume.shape[2:]) != smaller:
        volume = functional.adaptive_avg_pool3d(volume, smaller)
    if smaller != grid:
        volume = functional.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
    return volume


def without_first_frame(tokens: Tensor, grid: Grid, latent_frames: int | None = None) -> tuple[Tensor, Grid]:
    """Leaves the first latent frame out: it stands for one video frame, every other one for a whole temporal
    stride of them.

    tokens: `B N C` on `grid`; latent_frames: in the clip; None where every frame of tokens is one. Where a
    token spans several (CogVideoX 1.5: two), the tokens are stretched to latent frames first, so that one
    latent frame is dropped and not two. A clip of one frame is left alone.
    """
    if grid[0] == 1:
        return tokens, grid
    frames = latent_frames or grid[0]
    if frames == grid[0]:
        return tokens[:, grid[1] * grid[2] :], (frames - 1, *grid[1:])
    return to_tokens(in_frames(to_volume(tokens, grid), frames)[:, :, 1:]), (frames - 1, *grid[1:])


def _wide(tensor: Tensor) -> Tensor:
    """float32, or float64 where it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


Grid = tuple[int, int, int]


def correspondence(features: Tensor, grid: Grid, query: Grid, temperature: float = 0.1) -> Tensor:
    """P[i, f] of one token i: `F H W` float32, the places of every frame f sum to 1.

    features: `N C`, N = F * H * W tokens in frame-major order, any scale; grid: (F, H, W); query: the token's
    (frame, row, column). P[i, f] is the softmax over a frame's places of the cosine similarity over the
    temperature. Source: TSA eqs 6-8.
    Raises ValueError where the tokens do not fill the grid, the query lies outside it, or the temperature is
    not above 0.
    """
    if features.shape[0] != math.prod(grid):
        raise ValueError(f"{features.shape[0]} tokens do not fill a grid of {'x'.join(map(str, grid))}.")
    if not all(0 <= place < size for place, size in zip(query, grid)):
        raise ValueError(f"the point {query} lies outside a grid of {'x'.join(map(str, grid))}.")
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; it must be greater than 0.")
    unit = functional.normalize(features.float(), dim=-1)
    frame, row, column = query
    scores = unit @ unit[(frame * grid[1] + row) * grid[2] + column]
    return torch.softmax(scores.view(grid[0], -1) / temperature, dim=1).view(grid)
