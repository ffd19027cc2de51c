"""Write pictures of a game as a GIF or an MP4."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ebu.errors import UsageError
from ebu.run.files import write_whole

LONGEST_SIDE = 320  # pixels; larger pictures are scaled down
# One index of 256 stays free: Pillow uses it for "as in the picture before".
COLOURS = 255


def check_video_path(path: Path) -> None:
    """Raise `UsageError` if `write_video` could not write here; nothing is touched."""
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(f"{path}: a video ends in .gif or .mp4")


def write_video(path: Path, pictures: Iterable[np.ndarray], *, fps: int) -> None:
    """Write pictures (H, W, 3) or (H, W) uint8, at least one, as .gif or .mp4; whole or not at all.

    Raises `EbuError` where the disk fails.
    """
    scaled = [scale_down(picture) for picture in pictures]
    encode = animated_gif if path.suffix.lower() == ".gif" else _mp4
    write_whole(path, encode(scaled, fps))


def animated_gif(pictures: Sequence[np.ndarray] | np.ndarray, fps: float) -> bytes:
    """Pictures (H, W, 3) or (H, W) uint8, at least one, as a GIF in an endless loop.

    All pictures share one palette, so that only what moves is stored: up to 255 colours come out
    exactly. A GIF counts hundredths of a second, and browsers slow down what is faster than 50.
    """
    images = _with_one_palette([_as_rgb(picture) for picture in pictures])
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=max(20, round(100 / fps) * 10),
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()


def _as_rgb(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).convert("RGB"))


def _with_one_palette(pictures: Sequence[np.ndarray]) -> list[Image.Image]:
    """Indexed images of RGB pictures.

    Each colour counts once, however little of it there is: a ball keeps its own next to a wide sky.
    """
    codes = [picture @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32) for picture in pictures]
    seen = np.zeros(1 << 24, dtype=bool)
    for picture_codes in codes:
        seen[picture_codes] = True
    colours = np.flatnonzero(seen)
    strip = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8)
    palette = Image.fromarray(strip[None]).quantize(COLOURS)
    index_of = np.zeros(1 << 24, dtype=np.uint8)
    index_of[colours] = np.asarray(palette)[0]
    images = [Image.fromarray(index_of[picture_codes]) for picture_codes in codes]
    for image in images:
        image.putpalette(palette.getpalette() or [])
    return images


def scale_down(picture: np.ndarray) -> np.ndarray:
    """The picture with sides of at most `LONGEST_SIDE` pixels."""
    if max(picture.shape[:2]) <= LONGEST_SIDE:
        return picture
    image = Image.fromarray(picture)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)


def _mp4(pictures: Sequence[np.ndarray], fps: int) -> bytes:
    # Loads the encoders of FFmpeg, which nothing else needs.
    import av

    images = [_with_even_sides(_as_rgb(picture)) for picture in pictures]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=fps)
        # The only colours that every player shows.
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = images[0].shape[:2]
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _with_even_sides(picture: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3), its last row and column repeated: H.264 stores pairs of pixels."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
