"""Mutated films, lists, captions and answers: nothing ends a run, nothing is wrong in silence.

    python3 dev.py bench data/fuzz                     # 2,000 cases
    python3 dev.py bench data/fuzz --cases 200 --seed 1

Every case takes something good, changes some bytes of it, and reads it beside good neighbours, as the cache
command and the prompt parser do. Counted are tracebacks (anything but the one sentence that is promised),
good clips lost (a neighbour, or a row that was not touched, is missing) and captions of another clip. The
mutations are drawn from the seed; --minutes bounds the time. Exit status 1 if one of the three is not 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from latent_physics.methods.labels.llm import parse_prompt
from latent_physics.methods.labels.taxonomy import CATEGORIES
from latent_physics.training.console import TrainingError
from latent_physics.training.data.captions import caption_of, read_list
from latent_physics.training.data.finding import scan
from latent_physics.training.data.left_out import VideoError
from latent_physics.training.data.videos import content_hash, windows

WIDTH, HEIGHT, FRAMES = 48, 32, 9
SHARES = {"films": 0.4, "lists": 0.3, "captions": 0.1, "answers": 0.2}
"""Shares of the cases, by the mutated part."""
COUNTED = ("cases", "read", "refused", "tracebacks", "lost", "another's caption")
PIECES = (
    b'"', b"'", b",", b"\n", b"\r\n", b"\x00", b"{", b"}", b"[", b"]", b"\\", b"\xff\xfe",
    b"\xe2\x80\xa8", b"\xc2\x85", b"\xed\xa0\xbd", b"<think>", b"</think>", b"```", b"NaN", b"1e999",
    b"<!DOCTYPE html>", b"\xef\xbb\xbf", b";", b"\t",
)  # fmt: skip
"""Characters that are put into a text where it hurts."""
NAMES = [f"clip{number}.mp4" for number in range(6)]
CAPTIONS = [f"token{number} a ball, number {number}, falls" for number in range(6)]


def mutate(data: bytes, generator: np.random.Generator) -> tuple[bytes, int]:
    """(changed bytes, place of the first change): flips, gaps, copies, ends cut off, pieces put in."""
    kind = generator.integers(6)
    place = int(generator.integers(max(1, len(data))))
    size = int(generator.integers(1, 64))
    noise = generator.integers(0, 256, size).astype(np.uint8).tobytes()
    piece = PIECES[generator.integers(len(PIECES))]
    changed = (
        data[:place] + noise[:1] + data[place + 1 :],
        data[:place] + data[place + size :],
        data[:place],
        data[:place] + piece + data[place:],
        data[:place] + noise + data[place + size :],
        data[:place] + data[max(0, place - size) : place] + data[place:],
    )[kind]
    return changed, place


# --- films --------------------------------------------------------------------------------------------------


def pictures() -> np.ndarray:
    """Frames that tell their number, `T H W 3`."""
    frames = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    frames += (np.arange(FRAMES) * 20).astype(np.uint8)[:, None, None, None]
    frames[:, : HEIGHT // 2] += 50
    return frames


def write_film(path: Path, codec: str, pix_fmt: str) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        for picture in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_animation(path: Path) -> None:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in pictures()]
    images[0].save(path, save_all=True, append_images=images[1:], duration=125)


def good_films(folder: Path) -> dict[str, bytes]:
    """Suffix -> a good file of it."""
    for suffix, codec, pix_fmt in (
        (".mp4", "mpeg4", "yuv420p"),
        (".mkv", "ffv1", "yuv420p"),
        (".webm", "libvpx-vp9", "yuv420p"),
        (".avi", "mpeg4", "yuv420p"),
        (".ts", "mpeg2video", "yuv420p"),
    ):
        write_film(folder / f"good{suffix}", codec, pix_fmt)
    for suffix in (".gif", ".webp"):
        write_animation(folder / f"good{suffix}")
    return {path.suffix: path.read_bytes() for path in sorted(folder.glob("good.*"))}


class Films:
    """A mutated film beside a good one, found, hashed and cut as caching does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.good = folder, good_films(folder)
        for path in folder.iterdir():
            path.unlink()
        self.neighbour = folder / "neighbour.mkv"
        self.neighbour.write_bytes(self.good[".mkv"])

    def __call__(self, generator: np.random.Generator) -> Counter[str]:
        suffix = list(self.good)[generator.integers(len(self.good))]
        data = self.good[suffix]
        for _ in range(generator.integers(1, 4)):
            data, _ = mutate(data, generator)
        path = self.folder / f"mutated{suffix}"
        path.write_bytes(data)
        found = scan([self.folder])
        counts: Counter[str] = Counter()
        counts["lost"] += self.neighbour not in found.clips
        for clip in found.clips:
            try:
                content_hash(clip)
                cut = list(windows(clip, frames=5, width=WIDTH, height=HEIGHT, limit=0))
                counts["read"] += clip == path
                levels = [round((float(frame.mean()) - 25) / 20) for frame in cut[0].frames]
                counts["lost"] += clip == self.neighbour and levels != [0, 1, 2, 3, 4]
            except VideoError:
                counts["refused"] += clip == path
                counts["lost"] += clip == self.neighbour
        path.unlink()
        return counts


# --- lists and captions -------------------------------------------------------------------------------------


def good_lists() -> dict[str, bytes]:
    """File name -> a good list, a row a line where the format has lines."""
    rows = [{"video": name, "caption": caption} for name, caption in zip(NAMES, CAPTIONS)]
    lines = [json.dumps(row) for row in rows]
    quoted = ["video,caption", *(f'{name},"{caption}"' for name, caption in zip(NAMES, CAPTIONS))]
    plain = ["video;caption", *(f"{name};{caption}" for name, caption in zip(NAMES, CAPTIONS))]
    return {
        "lines.jsonl": "\n".join(lines).encode() + b"\n",
        "quoted.csv": "\n".join(quoted).encode() + b"\n",
        "plain.csv": "\n".join(plain).encode() + b"\n",
        "rows.json": json.dumps(rows).encode(),
        "wide.csv": "\n".join(quoted).encode("utf-16-le"),
    }


def foreign(number: int, caption: str, data: bytes = b"") -> bool:
    """Whether a clip's caption holds another's token, though `data`, the list, still names that other.

    Where a gap took its name, the list itself gives its words to the clip before it.
    """
    text = data.replace(b"\0", b"")
    named = [other for other, name in enumerate(NAMES) if not data or name.encode() in text]
    return any(f"token{other} " in caption for other in named if other != number)


class Lists:
    """A mutated list of six videos."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.good = folder, good_lists()
        for name in NAMES:
            (folder / name).write_bytes(b"x")

    def __call__(self, generator: np.random.Generator) -> Counter[str]:
        name = list(self.good)[generator.integers(len(self.good))]
        before = self.good[name]
        data, place = mutate(before, generator)
        path = self.folder / name
        path.write_bytes(data)
        counts: Counter[str] = Counter()
        try:
            found = read_list(path)
        except TrainingError:
            counts["refused"] = 1
        else:
            counts["read"] = 1
            texts = {clip.name: caption for clip, caption in found.texts.items()}
            for number, clip in enumerate(NAMES):
                counts["another's caption"] += foreign(number, texts.get(clip, ""), data)
            if name in ("lines.jsonl", "quoted.csv", "plain.csv"):
                counts["lost"] += sum(clip not in texts for clip in untouched(before, data, place))
        path.unlink()
        return counts


def untouched(before: bytes, after: bytes, place: int) -> list[str]:
    """Videos whose whole lines are in both lists, ahead of the change or behind it; none where the names of
    the columns are changed."""
    head = before.index(b"\n") + 1
    if before.startswith(b"video") and place < head:
        return []
    kept = []
    for name in NAMES:
        line = next(line for line in before.splitlines(keepends=True) if name.encode() in line)
        at = after.find(line)
        if (at > 0 and after[at - 1 : at] == b"\n") or at == 0:
            kept.append(name)
    return kept


class Captions:
    """A mutated text file beside a clip, and one that is good."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, caption in zip(NAMES, CAPTIONS):
            (folder / name).write_bytes(b"x")
            (folder / name).with_suffix(".txt").write_text(caption)

    def __call__(self, generator: np.random.Generator) -> Counter[str]:
        number = int(generator.integers(len(NAMES)))
        encoding = ("utf-8", "utf-16", "utf-16-le", "utf-16-be")[generator.integers(4)]
        data, _ = mutate(CAPTIONS[number].encode(encoding), generator)
        beside = (self.folder / NAMES[number]).with_suffix(".txt")
        beside.write_bytes(data)
        counts: Counter[str] = Counter()
        for other, name in enumerate(NAMES):
            try:
                caption, _ = caption_of(self.folder / name)
                caption.encode("utf-8")
                counts["read"] += other == number
                counts["another's caption"] += foreign(other, caption)
            except VideoError:
                counts["refused"] += other == number
                counts["lost"] += other != number
        beside.write_text(CAPTIONS[number])
        return counts


# --- answers ------------------------------------------------------------------------------------------------

ANSWERS = (
    b'{"description": "Water boils; steam rises.", "labels": ["Fluid", "Thermal"], "confidence": [0.9]}',
    b'<think>{"labels": ["Optical"]}?</think>\n```json\n{"labels": ["Fluid"], "description": "Water."}\n```',
    b'Of course!\n\n{"labels": [], "description": "\\u6c34 boils"}',
)


class Answers:
    """A mutated answer of a language model."""

    def __init__(self, folder: Path) -> None:
        pass

    def __call__(self, generator: np.random.Generator) -> Counter[str]:
        data = ANSWERS[generator.integers(len(ANSWERS))]
        data, _ = mutate(data, generator)
        answer = data.decode("utf-8", ("replace", "surrogateescape")[generator.integers(2)])
        parsed = parse_prompt("boiling water", lambda *question: answer, "a model")
        if not set(parsed.labels) <= set(CATEGORIES) or not parsed.description.isprintable():
            raise AssertionError(f"{parsed} is no answer")
        parsed.description.encode("utf-8")
        return Counter(read=not parsed.note, refused=bool(parsed.note))


# --- all ----------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Path], Callable[[np.random.Generator], Counter[str]]]] = {
    "films": Films,
    "lists": Lists,
    "captions": Captions,
    "answers": Answers,
}


def fuzz(cases: int, seed: int, seconds: float) -> dict[str, Counter[str]]:
    """Counts by kind. Case n of a kind is a function of the seed, the kind and n alone."""
    end, results = time.monotonic() + seconds, {}
    with tempfile.TemporaryDirectory() as place:
        for number, (kind, make) in enumerate(KINDS.items()):
            folder = Path(place) / kind
            folder.mkdir()
            run, counts = make(folder), Counter[str]()
            for case in range(round(cases * SHARES[kind])):
                if time.monotonic() > end:
                    break
                counts["cases"] += 1
                try:
                    counts += run(np.random.default_rng((seed, number, case)))
                except Exception:
                    counts["tracebacks"] += 1
                    print(f"{kind} {case}:", traceback.format_exc(), file=sys.stderr)
            results[kind] = counts
    return results


def table(results: dict[str, Counter[str]]) -> str:
    """A row a kind, and their sum."""
    rows = [*results.items(), ("all", sum(results.values(), Counter()))]
    lines = ["".join(f"{word:>18}" for word in ("", *COUNTED))]
    lines += [f"{kind:>18}" + "".join(f"{counts[word]:>18}" for word in COUNTED) for kind, counts in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases, prints the counts, returns the exit status."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0)
    args = parser.parse_args(argv)
    results = fuzz(args.cases, args.seed, 60 * args.minutes)
    print(table(results))
    total = sum(results.values(), Counter())
    print(f"{total['cases']} of {args.cases} cases, seed {args.seed}")
    return int(any(total[word] for word in ("tracebacks", "lost", "another's caption")))


if __name__ == "__main__":
    sys.exit(main())
