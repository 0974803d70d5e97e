"""A folder of cached clips, looked through once: what every reader of clips starts from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...methods.weights import WeightsError, read_info
from .clip import KIND, MASK, RECACHE_HINT, DatasetError, Entry, clip_info
from .shards import PACK_AGAIN, files_of


@dataclass(frozen=True, kw_only=True)
class ClipFolder:
    """The cached clips of one folder, by name. All are of one latent space and one width of prompt
    embeddings."""

    entries: list[Entry]
    latent_space: str
    cond_dim: int
    """Width of a prompt's embedding."""

    @classmethod
    def scan(
        cls, folder: str | os.PathLike[str], *, tokens: bool = False, limit: int | None = None
    ) -> ClipFolder:
        """Reads the metadata of every clip that the cache command left in `folder`, or `latent-physics pack`
        put into shards there; files of other kinds are passed over.

        tokens: the hint for an empty folder asks for prompts' tokens; limit: maximum number of clips, the
        first by name. Raises DatasetError where the folder is missing or holds no clip, a file is damaged, or
        clips do not fit together.
        """
        folder = Path(folder)
        options = f"{'--tokens ' if tokens else ''}--videos YOUR_CLIPS --out {folder}"
        hint = f"make it with: latent-physics cache {options}"
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder; {hint}")
        entries, spaces, widths = [], set(), set()
        for path, span in files_of(folder):
            try:
                info = read_info(path, span)
            except WeightsError as error:
                remedy = RECACHE_HINT if span is None else PACK_AGAIN
                raise DatasetError(f"{str(error).rstrip('.')}; {remedy}") from error
            if info.kind == KIND:
                entries.append(
                    Entry(
                        path=path,
                        span=span,
                        info=clip_info(path, info),
                        shape=tuple(info.config["shape"]),
                        first=frozenset(info.config.get("first", ())),
                        masked=MASK in info.config,
                    )
                )
                spaces.add(info.latent_space)
                widths.add(info.config["cond_dim"])
        if not entries:
            raise DatasetError(f"{folder} holds no cached clip; {hint}")
        if len(spaces) > 1 or len(widths) > 1:
            words = f"latent spaces {' and '.join(sorted(spaces))}"
            what = words if len(spaces) > 1 else f"prompt embeddings of widths {sorted(widths)}"
            raise DatasetError(f"{folder} mixes {what}; keep one folder for each backbone.")
        return cls(entries=entries[:limit], latent_space=spaces.pop(), cond_dim=widths.pop())

    def split(self, share: float, seed: int) -> tuple[list[int], list[int]]:
        """`split_films` of these clips."""
        return split_films([entry.info.source_hash for entry in self.entries], share, seed)


def split_films(films: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """(training, held out) clip numbers; a `share` of the source videos, at least one where share > 0, is
    held out.

    `films`: each clip's source video; all windows of one go to the same side. Raises DatasetError where
    nothing would be left to train on.
    """
    names = sorted(set(films))
    count = max(1, round(share * len(names))) if share > 0 else 0
    if count >= len(names):
        message = f"Of {len(names)} clips {count} would be held out, which leaves none to train on"
        raise DatasetError(f"{message}: cache more source videos, or hold none out (held_out 0).")
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = {names[index] for index in order[:count]}
    return [i for i, film in enumerate(films) if film not in chosen], [
        i for i, film in enumerate(films) if film in chosen
    ]


@dataclass
class Epochs:
    """An endless sequence of shuffled epochs over `count` things: place `number` is a function of count, seed
    and number alone, so a resumed run sees what an uninterrupted one would have seen. The last permutation is
    remembered."""

    count: int
    seed: int
    _last: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    def __getitem__(self, number: int) -> int:
        epoch, place = divmod(number, self.count)
        if self._last is None or self._last[0] != epoch:
            self._last = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count))
        return int(self._last[1][place])
