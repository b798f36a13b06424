"""Videos through an image backbone: which frames, how they become a row, what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyfeat import FeatureExtractor, jobs
from pyfeat.errors import InputError
from pyfeat.extract._video_frames import decode_frames
from pyfeat.ops import preprocess
from tests.extract.conftest import SMALL, Seen, SmallBackbone

av: Any = pytest.importorskip("av")
EPS = float(np.finfo(np.float32).eps)
# Containers and codecs that give back the pixels that were put in.
LOSSLESS = [
    ("matroska", "ffv1", "bgr0", {}),
    ("mp4", "libx264rgb", "rgb24", {"qp": "0"}),
    ("avi", "rawvideo", "bgr24", {}),
]
# Every way of time stamps and key frames: B frames, none, a late start, no index.
LOSSY = [
    ("mp4", "mpeg4", {"bf": "2"}),
    ("avi", "mpeg4", {"bf": "2"}),
    ("mpegts", "mpeg2video", {"bf": "2"}),
    ("mp4", "libx264", {"bf": "3", "x264-params": "open-gop=1"}),
    ("matroska", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
]


def movie(rng: np.random.Generator, n: int, h: int = 32, w: int = 48) -> NDArray[np.uint8]:
    """Return frames of noise, coarse enough for any codec."""
    coarse = rng.integers(0, 256, (n, h // 4, w // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def encode(
    frames: NDArray[np.uint8],
    container: str = "matroska",
    codec: str = "ffv1",
    pixels: str = "bgr0",
    options: dict[str, str] | None = None,
    rotation: int = 0,
) -> bytes:
    """Return a video file of 25 frames a second, with a key frame every 5."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    flags = {"movflags": "faststart"} if container == "mp4" else {}
    with TemporaryDirectory() as folder:  # an mp4 is read again to put its index first
        path = Path(folder, "video")
        _write(path, frames, (container, flags), (codec, pixels, options or {}), rotation)
        return path.read_bytes()


def _write(path: Path, frames: Any, container: Any, coding: Any, rotation: int) -> None:
    codec, pixels, options = coding
    with av.open(str(path), "w", format=container[0], options=container[1]) as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = pixels, 5
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def extractor(backbone: Any, video: str | None = "avg", **settings: Any) -> FeatureExtractor:
    return FeatureExtractor(backbone, video=video, preprocessing=SMALL, device="cpu", **settings)


@pytest.mark.parametrize(("container", "codec", "pixels", "options"), LOSSLESS)
def test_middle_frames_of_equal_segments_are_taken(rng, container, codec, pixels, options) -> None:
    frames = movie(rng, 23)
    found = decode_frames(encode(frames, container, codec, pixels, options), 4, "clip")
    # Segments of 5.75 frames: their middles lie at 2.875, 8.625, 14.375 and 20.125.
    np.testing.assert_array_equal(found, frames[[2, 8, 14, 20]])


@pytest.mark.parametrize(("container", "codec", "options"), LOSSY)
@pytest.mark.parametrize("count", [1, 3, 8, 50])
def test_seeking_changes_no_frame(rng, container, codec, options, count) -> None:
    content = encode(movie(rng, 33), container, codec, "yuv420p", options)
    jumped = decode_frames(content, count, "clip")
    np.testing.assert_array_equal(jumped, decode_frames(content, count, "clip", seek=False))
    with av.open(io.BytesIO(content)) as file:
        every = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    middles = [(2 * i + 1) * 33 // (2 * count) for i in range(count)] if count < 33 else range(33)
    np.testing.assert_array_equal(jumped, [every[i] for i in middles])


def test_row_is_the_mean_of_the_rows_of_its_frames(rng, backbone) -> None:
    frames = movie(rng, 20)
    images = extractor(backbone, None).transform(frames[[2, 7, 12, 17]])
    row = extractor(backbone, frames=4).transform([encode(frames)])
    np.testing.assert_array_equal(row, images.mean(axis=0, keepdims=True))


def test_row_may_be_the_maximum_of_the_rows_of_its_frames(rng, backbone) -> None:
    frames = movie(rng, 20)
    images = extractor(backbone, None).transform(frames[[2, 7, 12, 17]])
    row = extractor(backbone, "max", frames=4).transform([encode(frames)])
    np.testing.assert_array_equal(row, images.max(axis=0, keepdims=True))


def test_array_of_frames_is_the_same_video(rng, backbone) -> None:
    videos = np.stack([movie(rng, 11), movie(rng, 11)])
    pooled = extractor(backbone, frames=3)
    rows = pooled.transform([encode(v) for v in videos])
    np.testing.assert_array_equal(pooled.transform(videos), rows)
    np.testing.assert_array_equal(pooled.transform(videos[0]), rows[:1])
    np.testing.assert_array_equal(pooled.transform(list(videos)), rows)


def test_short_video_gives_every_frame_once(rng, backbone) -> None:
    frames = movie(rng, 3)
    rows = extractor(backbone).transform([encode(frames), frames, encode(frames[:1])])
    images = extractor(backbone, None).transform(frames)
    np.testing.assert_array_equal(rows[:2], np.stack([images.mean(axis=0)] * 2))
    np.testing.assert_array_equal(rows[2], images[0])


def test_videos_of_any_length_share_batches(rng, backbone) -> None:
    videos = [movie(rng, n) for n in (9, 1, 2, 30, 4)]
    alone = np.concatenate([extractor(backbone, frames=3).transform([v]) for v in videos])
    together = extractor(backbone, frames=3, batch_size=5).transform(videos)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_noted_in_the_file_is_applied(rng, rotation) -> None:
    frames = movie(rng, 4)
    content = encode(frames, "mp4", "libx264rgb", "rgb24", {"qp": "0"}, rotation)
    turned = np.rot90(frames, rotation // 90, axes=(1, 2))
    np.testing.assert_array_equal(decode_frames(content, 4, "clip"), turned)


def test_space_names_number_and_pooling_of_frames(backbone) -> None:
    spaces = [
        extractor(backbone, None),
        extractor(backbone, "avg"),
        extractor(backbone, "max"),
        extractor(backbone, "avg", frames=4),
    ]
    found = [e.get_space() for e in spaces]
    assert len({s.fingerprint for s in found}) == 4
    assert found[2].parts["video"] == {"frames": 8, "pooling": "max"}
    assert {k: v for k, v in found[2].parts.items() if k != "video"} == found[0].parts


def test_no_frame_runs_twice_with_a_store(rng, backbone, tmp_path: Path, seen: Seen) -> None:
    contents = [encode(movie(rng, 6)) for _ in range(3)]
    pooled = extractor(backbone, frames=2, store=tmp_path / "feats")
    first = pooled.transform(contents[:2])
    assert seen.n == 4
    again = pooled.transform(contents)
    assert seen.n == 6
    np.testing.assert_array_equal(again[:2], first)


def test_job_counts_videos_and_names_bad_ones(rng, backbone, tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(encode(movie(rng, 6)))
    (tmp_path / "b.mp4").write_bytes(encode(movie(rng, 6), "mp4", "mpeg4", "yuv420p"))
    (tmp_path / "c.mp4").write_bytes(b"no video" * 40)
    paths = sorted(tmp_path.glob("*.m*"))
    pooled = extractor(backbone, frames=2)
    s = jobs.extract(paths, tmp_path / "feats", pooled)
    assert (s.total, s.computed) == (3, 2)
    assert [Path(q.path).name for q in s.quarantined] == ["c.mp4"]
    assert jobs.extract(paths, tmp_path / "feats", pooled).stored == 2


def test_engine_is_chosen_on_frames(rng, backbone) -> None:
    chosen = extractor(backbone, engine="torch", precision="auto", min_cosine=0.9)
    assert chosen.fit([movie(rng, 9)]).fidelity_.sample == 8


@pytest.fixture(scope="module")
def damaged() -> dict[str, bytes]:
    frames = movie(np.random.default_rng(0), 60)
    mkv, mp4 = encode(frames), encode(frames, "mp4", "mpeg4", "yuv420p")
    avi = encode(frames, "avi", "mpeg4", "yuv420p")
    sound = io.BytesIO()
    with av.open(sound, "w", format="matroska") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        silence.sample_rate = 8000
        file.mux(stream.encode(silence))
        file.mux(stream.encode())
    return {
        "empty": b"",
        "text": b"a letter\n" * 50,
        "playlist": b"ffconcat version 1.0\nfile a.mkv\n",
        "half an mkv": mkv[: len(mkv) // 2],
        "half an mp4": mp4[: len(mp4) // 2],
        "half an avi": avi[: len(avi) // 2],
        "head of an mkv": mkv[:300],
        "sound": sound.getvalue(),
    }


def test_damaged_file_is_an_input_error_with_a_reason(damaged, backbone, tmp_path: Path) -> None:
    for kind, content in damaged.items():
        path = tmp_path / f"{kind}.mkv"
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{kind}\.mkv: it \w+"):
            extractor(backbone).transform([path])


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        7,
    ],
)
def test_value_that_is_no_video_is_named(value, backbone) -> None:
    with pytest.raises(InputError, match=r"X\[0\]: (array )?must be"):
        extractor(backbone).transform([value])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"video": "median"}, "video must be one of"),
        ({"frames": 0}, "frames must be a positive integer"),
        ({"frames": True}, "frames must be a positive integer"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        extractor(SmallBackbone(), **settings).fit()


@pytest.mark.parametrize(
    ("container", "codec", "pixels", "known"),
    [("matroska", "ffv1", "bgr0", b"V_FFV1"), ("avi", "mpeg4", "yuv420p", b"FMP4")],
)
def test_codec_that_is_not_known_is_named(rng, container, codec, pixels, known) -> None:
    content = encode(movie(rng, 6), container, codec, pixels)
    assert known in content
    with pytest.raises(InputError, match=r"^clip: its codec is not known$"):
        decode_frames(content.replace(known, known[:2] + b"Q" * (len(known) - 2)), 2, "clip")


def test_frames_go_through_the_preprocessing_of_images(rng) -> None:
    frames = movie(rng, 2)
    flat = extractor(torch.nn.Flatten(), frames=2).transform([encode(frames)])
    pixels = torch.stack([preprocess(f, SMALL) for f in frames]).flatten(1)
    assert np.abs(flat[0] - pixels.mean(dim=0).numpy()).max() <= 2 * EPS * pixels.abs().max()
