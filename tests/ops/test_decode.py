"""The same files, the same pixels and the same verdicts as Pillow, whichever library decodes."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pyfeat.errors import BackendError, InputError
from pyfeat.ops import Preprocessing, decode, decode_preprocess, explain, preprocess
from pyfeat.ops import _decode as module
from pyfeat.ops._decode import _by_turbo, _why_no_turbo

from .conftest import RunOn

ORIENTATION = 0x0112
SPEC = Preprocessing(resize=36, crop=32)
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
SIZES = [(1, 1), (1, 9), (7, 1), (2, 3), (8, 8), (15, 17), (16, 16), (33, 31), (61, 97)]  # (h, w)


def photo(h: int, w: int, seed: int = 0) -> Image.Image:
    """Return an image with soft areas, an edge and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((w, h))).astype(int)
    image[:, w // 2 :] = 255 - image[:, w // 2 :]
    return Image.fromarray((image + rng.integers(-6, 7, image.shape)).clip(0, 255).astype("u1"))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def pillow(content: bytes) -> NDArray[np.uint8]:
    """Decode with Pillow alone."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def outcome(run: Callable[[], NDArray[np.uint8]]) -> Any:
    """Return the pixels as comparable values, or the reason why there are none."""
    try:
        pixels = run()
    except InputError as error:
        return error.reason
    return pixels.shape, pixels.tobytes()


def turbo_decodes(content: bytes, target: int | None = None) -> bool:
    return _by_turbo(content, target) is not None


# ---- sound files: Pillow's pixels, bit for bit


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("sampling", SUBSAMPLINGS)
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_pixels_equal_pillow(
    backend: RunOn, size: tuple[int, int], sampling: str, progressive: bool
) -> None:
    for quality in (1, 50, 75, 95, 100):
        content = jpeg(
            photo(*size),
            quality=quality,
            subsampling=SUBSAMPLINGS[sampling],
            progressive=progressive,
        )
        assert turbo_decodes(content)
        np.testing.assert_array_equal(decode(content, backend=backend.name), pillow(content))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_grey_files_equal_pillow(backend: RunOn, size: tuple[int, int]) -> None:
    content = jpeg(photo(*size).convert("L"))
    assert turbo_decodes(content)
    np.testing.assert_array_equal(decode(content, backend=backend.name), pillow(content))


@pytest.mark.parametrize("option", ["restart_marker_blocks", "restart_marker_rows"])
def test_files_with_restart_markers_equal_pillow(backend: RunOn, option: str) -> None:
    content = jpeg(photo(61, 97), **{option: 2})
    assert b"\xff\xd0" in content
    assert turbo_decodes(content)
    np.testing.assert_array_equal(decode(content, backend=backend.name), pillow(content))


def test_files_in_rgb_equal_pillow(backend: RunOn) -> None:
    content = jpeg(photo(33, 31), keep_rgb=True, subsampling=0)
    assert turbo_decodes(content)
    np.testing.assert_array_equal(decode(content, backend=backend.name), pillow(content))


@given(
    h=st.integers(1, 80),
    w=st.integers(1, 80),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    optimize=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_any_sound_file_equals_pillow(h: int, w: int, seed: int, **options: Any) -> None:
    content = jpeg(photo(h, w, seed), **options)
    np.testing.assert_array_equal(decode(content), pillow(content))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_that_of_the_reference(backend: RunOn, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = jpeg(photo(33, 47), exif=exif)
    assert turbo_decodes(content)
    pixels = decode(content, backend=backend.name)
    np.testing.assert_array_equal(pixels, decode(content, backend="reference"))
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(backend: RunOn, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = jpeg(photo(33, 47), exif=exif)
    np.testing.assert_array_equal(decode(content, backend=backend.name), pillow(content))


@pytest.mark.parametrize("mode", ["CMYK", "YCCK"])
def test_four_channels_are_left_to_pillow(backend: RunOn, mode: str) -> None:
    content = jpeg(photo(33, 31).convert("CMYK"))
    if mode == "YCCK":  # the transform that the Adobe segment names
        at = content.index(b"Adobe") + 11
        content = content[:at] + b"\x02" + content[at + 1 :]
    assert not turbo_decodes(content)
    np.testing.assert_array_equal(decode(content, backend=backend.name), pillow(content))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO"])
def test_other_formats_are_left_to_pillow(backend: RunOn, format: str) -> None:
    file = io.BytesIO()
    options = {"save_all": True, "append_images": [photo(31, 33, 1)]} if format == "MPO" else {}
    photo(31, 33).save(file, format, **options)
    content = file.getvalue()
    np.testing.assert_array_equal(decode(content, backend=backend.name), pillow(content))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_content_is_taken(kind: type) -> None:
    content = jpeg(photo(20, 30))
    np.testing.assert_array_equal(decode(kind(content)), pillow(content))


# ---- unsound files: Pillow's verdict


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_a_file_cut_anywhere_gets_the_verdict_of_pillow(backend: RunOn, progressive: bool) -> None:
    content = jpeg(photo(33, 31), progressive=progressive)
    for end in [*range(0, 700, 23), *range(len(content) - 40, len(content))]:
        part = content[:end]
        got = outcome(lambda part=part: decode(part, backend=backend.name))
        assert got == outcome(lambda part=part: decode(part, backend="reference"))
        assert isinstance(got, str)


def test_a_long_file_cut_anywhere_is_called_truncated(backend: RunOn) -> None:
    # Longer than one of the blocks that Pillow reads.
    content = jpeg(photo(600, 800), quality=95)
    assert len(content) > 2 * ImageFile.MAXBLOCK
    for end in np.linspace(1000, len(content) - 1, 12).astype(int):
        reason = outcome(lambda end=end: decode(content[:end], backend=backend.name))
        assert reason.startswith("it is truncated: ")


@given(
    seed=st.integers(0, 2**20),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.none(), st.floats(0, 1)),
    grey=st.booleans(),
    progressive=st.booleans(),
    restart=st.integers(0, 3),
    target=st.one_of(st.none(), st.integers(1, 40)),
)
@settings(max_examples=250, deadline=None)
def test_any_damage_gets_the_verdict_and_the_pixels_of_pillow(
    seed: int,
    places: list[tuple[float, int]],
    cut: float | None,
    grey: bool,
    progressive: bool,
    restart: int,
    target: int | None,
) -> None:
    rng = np.random.default_rng(seed)
    image = photo(*(int(n) for n in rng.integers(1, 60, 2)), seed).convert("L" if grey else "RGB")
    content = jpeg(image, progressive=progressive, restart_marker_blocks=restart)
    broken = bytearray(content if cut is None else content[: int(cut * len(content))])
    for place, value in places:
        if broken:
            broken[int(place * len(broken))] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)  # a damaged size must not cost memory
        got, want = (
            outcome(lambda b=b: decode(broken, mode="fast", target=target, backend=b))
            for b in ("cpp", "reference")
        )
    assert got == want


def test_damage_that_pillow_reads_over_is_read_over(backend: RunOn) -> None:
    content = jpeg(photo(61, 97), restart_marker_blocks=1)
    broken = content.replace(b"\xff\xd3", b"\xff\xd5", 1)  # a marker out of its turn
    assert not turbo_decodes(broken)
    np.testing.assert_array_equal(decode(broken, backend=backend.name), pillow(broken))


def test_a_bomb_is_refused_before_memory_is_asked_for(
    backend: RunOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"photo: it is too large: "):
        decode(jpeg(photo(21, 11)), name="photo", backend=backend.name)


def test_no_bytes_are_called_empty(backend: RunOn) -> None:
    with pytest.raises(InputError, match=r"^data: it is empty$"):
        decode(b"", backend=backend.name)


# ---- mode "fast"


@pytest.mark.parametrize(
    ("size", "target", "factor"),
    [
        ((61, 97), 61, 1),
        ((61, 97), 32, 1),
        ((61, 97), 31, 2),  # ceil(61 / 2)
        ((61, 97), 16, 4),
        ((61, 97), 8, 8),
        ((97, 61), 1, 8),
        ((61, 97), 10**6, 1),
        ((15, 97), 1, 1),  # too small to be decoded smaller
        ((16, 16), 2, 8),
    ],
)
def test_fast_takes_the_smallest_scale_that_covers(
    backend: RunOn, size: tuple[int, int], target: int, factor: int
) -> None:
    pixels = decode(jpeg(photo(*size)), mode="fast", target=target, backend=backend.name)
    assert pixels.shape == (-(-size[0] // factor), -(-size[1] // factor), 3)


@pytest.mark.parametrize("size", [*range(16, 42), 61, 97, 125])
def test_fast_pixels_are_those_of_pillow_at_that_scale(backend: RunOn, size: int) -> None:
    for sampling in SUBSAMPLINGS.values():
        content = jpeg(photo(size, size + 7), subsampling=sampling)
        for target in (1, size // 4, size // 2):
            assert turbo_decodes(content, target)
            got = decode(content, mode="fast", target=target, backend=backend.name)
            want = decode(content, mode="fast", target=target, backend="reference")
            np.testing.assert_array_equal(got, want)


def test_fast_without_a_target_is_exact(backend: RunOn) -> None:
    content = jpeg(photo(61, 97))
    got = decode(content, mode="fast", backend=backend.name)
    np.testing.assert_array_equal(got, pillow(content))


def test_exact_takes_no_notice_of_a_target(backend: RunOn) -> None:
    content = jpeg(photo(61, 97))
    np.testing.assert_array_equal(decode(content, target=8, backend=backend.name), pillow(content))


def test_fast_turns_upright_too(backend: RunOn) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = jpeg(photo(61, 97), exif=exif)
    pixels = decode(content, mode="fast", target=30, backend=backend.name)
    assert pixels.shape == (49, 31, 3)
    want = decode(content, mode="fast", target=30, backend="reference")
    np.testing.assert_array_equal(pixels, want)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_fast_tensors_of_a_soft_picture_are_within_a_level(factor: int) -> None:
    h, w = SPEC.resize * factor, (SPEC.resize + 12) * factor
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    content = jpeg(Image.fromarray(coarse).resize((w, h)), quality=95)
    assert decode(content, mode="fast", target=SPEC.resize).shape[0] == SPEC.resize
    exact, fast = (decode_preprocess(content, SPEC, mode=m) for m in ("exact", "fast"))
    levels = (exact - fast).abs() * torch.tensor(SPEC.std)[:, None, None] * 255
    assert (
        levels.mean() <= 1
    )  # both are averages of the same pixels, rounded and clipped at other places


# ---- fused with preprocess


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_fused_equals_the_two_steps(backend: RunOn, mode: str) -> None:
    content = jpeg(photo(97, 161))
    pixels = decode(content, mode=mode, target=SPEC.resize, backend=backend.name)
    want = preprocess(pixels, SPEC, backend=backend.name)
    got = decode_preprocess(content, SPEC, mode=mode, backend=backend.name)
    assert torch.equal(got, want)


def test_fused_writes_where_it_is_told(backend: RunOn) -> None:
    content = jpeg(photo(97, 161))
    batch = torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16)
    got = decode_preprocess(content, SPEC, dtype=torch.bfloat16, out=batch[1], backend=backend.name)
    assert got.data_ptr() == batch[1].data_ptr()
    assert torch.equal(got, decode_preprocess(content, SPEC, dtype=torch.bfloat16))
    assert not batch[0].any()


def test_fused_names_a_file_that_cannot_be_read(backend: RunOn) -> None:
    with pytest.raises(InputError, match=r"^a\.jpg: it is truncated: "):
        decode_preprocess(jpeg(photo(97, 161))[:-2], SPEC, name="a.jpg", backend=backend.name)


# ---- threads


def test_eight_threads_get_the_same_bits(backend: RunOn) -> None:
    contents = [jpeg(photo(97 + i, 161 - i, i)) for i in range(8)]
    contents[3] = contents[3][:-9]

    def run(content: bytes) -> Any:
        return outcome(lambda: decode_preprocess(content, SPEC, backend=backend.name).numpy())

    alone = [run(c) for c in contents]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, contents * 8))
    assert together == alone * 8


def test_other_threads_run_while_a_file_is_decoded() -> None:
    content = jpeg(photo(1500, 2000))
    steps, done = 0, threading.Event()

    def count() -> None:
        nonlocal steps
        while not done.is_set():
            steps += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    # Nobody is made to hand the lock over: the other thread only moves when it is released.
    sys.setswitchinterval(60)
    other = threading.Thread(target=count)
    try:
        other.start()
        before = steps
        decode(content, backend="cpp")
        after = steps
    finally:
        done.set()
        other.join()
        sys.setswitchinterval(interval)
    # Opening the file lets it move a few times at most.
    assert after - before > 20


# ---- arguments and backends


def test_other_modes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of \['exact', 'fast'\], got 'quick'"):
        decode(b"", mode="quick")


@pytest.mark.parametrize("target", [0, -1])
def test_targets_below_one_are_refused(target: int) -> None:
    with pytest.raises(ValueError, match=f"target must be at least 1, got {target}"):
        decode(b"", target=target)


@pytest.mark.parametrize("target", [1.5, True, "8"])
def test_targets_that_are_no_integers_are_refused(target: Any) -> None:
    with pytest.raises(TypeError, match="target must be an integer, got"):
        decode(b"", target=target)


def test_a_path_is_no_content() -> None:
    with pytest.raises(TypeError, match="data must be bytes-like, got str"):
        decode("a.jpg")  # type: ignore[arg-type]


def test_without_simplejpeg_cpp_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    _why_no_turbo.cache_clear()
    try:
        assert explain("decode", b"") == {"cpp": "simplejpeg is not installed", "reference": "ok"}
        with pytest.raises(BackendError, match="simplejpeg is not installed"):
            decode(b"", backend="cpp")
    finally:
        _why_no_turbo.cache_clear()


def test_cpp_refuses_a_pillow_of_another_libjpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.features, "version", lambda name: None)
    _why_no_turbo.cache_clear()
    try:
        assert explain("decode", b"")["cpp"] == (
            "Pillow must be built with libjpeg-turbo 3 or later, got None"
        )
    finally:
        _why_no_turbo.cache_clear()
