"""GIFs that keep every colour, MP4s that any player shows, one clear line for what is neither."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebu.errors import EbuError, UsageError
from ebu.run.video import check_video_path, write_video


def moving_dot(count: int, *, size: tuple[int, int] = (21, 16)) -> list[np.ndarray]:
    """A red dot that moves to the right over blue."""
    pictures = []
    for t in range(count):
        picture = np.full((*size, 3), (10, 20, 200), dtype=np.uint8)
        picture[3, t % size[1]] = (255, 0, 0)
        pictures.append(picture)
    return pictures


def read_back(path: Path) -> list[np.ndarray]:
    """Every picture of a GIF in full."""
    with Image.open(path) as gif:
        pictures = []
        for t in range(getattr(gif, "n_frames", 1)):
            gif.seek(t)
            pictures.append(np.asarray(gif.convert("RGB")))
        return pictures


def test_a_gif_holds_every_picture_in_its_colours(tmp_path: Path) -> None:
    pictures = moving_dot(12)
    write_video(tmp_path / "game.gif", iter(pictures), fps=15)
    back = read_back(tmp_path / "game.gif")
    assert len(back) == 12
    assert all((a == b).all() for a, b in zip(pictures, back, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["game.gif"]


def test_as_many_colours_as_a_palette_has_come_out_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours = rng.choice(2**24, size=255, replace=False)
    colours = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8)
    pictures = [colours[rng.permutation(255).reshape(15, 17)] for _ in range(3)]
    write_video(tmp_path / "game.gif", pictures, fps=15)
    assert all(
        (a == b).all() for a, b in zip(pictures, read_back(tmp_path / "game.gif"), strict=True)
    )


@pytest.mark.parametrize(("fps", "milliseconds"), [(15, 70), (50, 20), (200, 20), (1, 1000)])
def test_a_gif_plays_endlessly_at_its_speed(tmp_path: Path, fps: int, milliseconds: int) -> None:
    write_video(tmp_path / "game.gif", moving_dot(3), fps=fps)
    with Image.open(tmp_path / "game.gif") as gif:
        assert gif.info["duration"] == milliseconds
        assert gif.info["loop"] == 0


@pytest.mark.parametrize("name", ["game.avi", "gif", "game.gif.txt"])
def test_an_unknown_ending_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"ends in \.gif or \.mp4"):
        check_video_path(Path(name))


@pytest.mark.parametrize(
    ("suffix", "size", "fps"), [(".mp4", (64, 48), 15), (".MP4", (21, 17), 30)]
)
def test_an_mp4_holds_every_picture_at_its_speed(
    suffix: str, size: tuple[int, int], fps: int, tmp_path: Path
) -> None:
    import av

    path = tmp_path / f"game{suffix}"
    pictures = [np.full((*size, 3), 5 * t, dtype=np.uint8) for t in range(40)]
    write_video(path, iter(pictures), fps=fps)
    with av.open(str(path)) as video:
        (stream,) = video.streams.video
        back = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
        assert stream.average_rate == fps
    assert len(back) == len(pictures)
    # Sides become even.
    assert {frame.shape for frame in back} == {(size[0] + size[0] % 2, size[1] + size[1] % 2, 3)}
    for frame, picture in zip(back, pictures, strict=True):
        assert abs(float(frame.mean()) - float(picture.mean())) < 8
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_place_that_cannot_be_written_is_one_line(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EbuError, match=r"cannot write .*: \w+") as error:
        write_video(tmp_path / "file" / f"game{suffix}", moving_dot(2), fps=15)
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_earlier_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "game.gif"
    path.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EbuError, match="No space left on device"):
        write_video(path, moving_dot(2), fps=15)
    assert path.read_bytes() == b"before"
