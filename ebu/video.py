"""Pictures of a game as a GIF or an MP4."""

import importlib
import importlib.util
import io
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ebu.errors import EbuError, UsageError

LONGEST_SIDE = 320  # pixels; larger pictures are scaled down
# One index of 256 stays free: Pillow uses it for "as in the picture before".
COLOURS = 255


def check_video_path(path: Path) -> None:
    """Raise `UsageError` if `write_video` could not write here; nothing is touched."""
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(f"{path}: a video ends in .gif or .mp4")
    if path.suffix.lower() == ".mp4" and _ffmpeg() is None and not _has_opencv():
        raise UsageError(
            f"{path}: MP4 needs ffmpeg: install it, or `pip install imageio-ffmpeg`, "
            "or write a .gif, which needs nothing"
        )


def write_video(path: Path, pictures: Iterable[np.ndarray], *, fps: int) -> None:
    """Write pictures (H, W, 3) or (H, W) uint8, at least one, as .gif or .mp4; whole or not at all.

    Raises `EbuError` where the disk or the encoder fails.
    """
    scaled = [_scaled_down(picture) for picture in pictures]
    draft = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        if path.suffix.lower() == ".gif":
            draft.write_bytes(animated_gif(scaled, fps))
        else:
            _write_mp4(draft, scaled, fps)
        draft.replace(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EbuError(f"{path} cannot be written: {reason}; choose another place") from error
    finally:
        draft.unlink(missing_ok=True)


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

    Each colour counts once, however little of it there is: a ball keeps its own beside a wide sky.
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


def _scaled_down(picture: np.ndarray) -> np.ndarray:
    if max(picture.shape[:2]) <= LONGEST_SIDE:
        return picture
    image = Image.fromarray(picture)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)


def _ffmpeg() -> str | None:
    found = shutil.which("ffmpeg")
    if found is None and importlib.util.find_spec("imageio_ffmpeg") is not None:
        try:
            found = str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
        except RuntimeError:
            return None
    return found


def _has_opencv() -> bool:
    return importlib.util.find_spec("cv2") is not None


def _write_mp4(path: Path, pictures: Sequence[np.ndarray], fps: int) -> None:
    images = [_as_rgb(picture) for picture in pictures]
    height, width = images[0].shape[:2]
    ffmpeg = _ffmpeg()
    if ffmpeg is None:
        _write_with_opencv(path, images, fps)
        return
    # H.264 with the colours every player shows wants even sides.
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)]
    target = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p"]
    encoded = subprocess.run(
        [ffmpeg, "-y", "-loglevel", "error", *raw, "-i", "-", *target, str(path)],
        input=b"".join(image.tobytes() for image in images),
        capture_output=True,
    )
    if encoded.returncode:
        words = encoded.stderr.decode(errors="replace").split("\n")
        raise RuntimeError(f"ffmpeg says {words[0].strip()!r}")


def _write_with_opencv(path: Path, images: Sequence[np.ndarray], fps: int) -> None:
    cv2 = importlib.import_module("cv2")
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise RuntimeError("OpenCV has no MP4 encoder")
    for image in images:
        writer.write(np.ascontiguousarray(image[:, :, ::-1]))
    writer.release()
