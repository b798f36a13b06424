"""Whatever a file holds becomes RGB, or an InputError with a reason."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pyfeat.errors import InputError
from pyfeat.extract._decode import image_from_array, image_from_pil, read_file
from pyfeat.ops import decode

ORIENTATION = 0x0112


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decode_image(content: bytes, name: str) -> NDArray[np.uint8]:
    return decode(content, name=name)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int = 24, width: int = 32) -> Image.Image:
    """Return an image whose colours survive a lossy format."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([x * 255 / width, y * 255 / height, 128 + 0 * x], 2).astype("u1")
    )


# ---- what comes out of every kind of file


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "TGA"])
def test_lossless_formats_give_the_pixels_back(format: str) -> None:
    pixels = noise(5, 7, 3)
    np.testing.assert_array_equal(
        decode_image(encoded(Image.fromarray(pixels), format), "x"), pixels
    )


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats_equal_pillow_itself(format: str) -> None:
    content = encoded(smooth(), format)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(content, "x"), expected)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "RGBa", "La"]
)
def test_every_mode_becomes_three_channels(mode: str) -> None:
    assert image_from_pil(Image.new(mode, (4, 3)), "x").shape == (3, 4, 3)


def test_grey_levels_are_repeated_in_every_channel() -> None:
    grey = noise(5, 7)
    image = decode_image(encoded(Image.fromarray(grey)), "x")
    np.testing.assert_array_equal(image, np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2)])
def test_alpha_is_dropped_without_blending(mode: str, channels: int) -> None:
    pixels = noise(5, 7, channels)
    image = decode_image(encoded(Image.frombytes(mode, (7, 5), pixels.tobytes())), "x")
    colours = pixels[:, :, :-1] if channels == 4 else np.repeat(pixels[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(image, colours)


def test_a_transparent_palette_gives_its_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    content = encoded(image, transparency=bytes([0, 128]))
    assert decode_image(content, "x").tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    image = decode_image(encoded(red, "JPEG", quality=100), "x").astype(int)
    assert np.abs(image - [250, 10, 10]).max() <= 2  # quantisation of a flat JPEG


def test_lab_is_converted_by_its_profile() -> None:
    # L = 100 of 100 and a = b = 0 is white.
    white = Image.frombytes("LAB", (1, 1), bytes([255, 0, 0]))
    assert image_from_pil(white, "x").min() >= 250


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_counts(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 0, 255))]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert decode_image(content, "x")[4, 4].argmax() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    # The value says on which sides row 0 and column 0 of the stored image are seen.
    upright = np.asarray(smooth())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif)
    image = decode_image(content, "x").astype(int)
    assert image.shape == upright.shape
    # A wrong turn of these ramps is off by 60 grey levels; lossy coding by less than 8.
    assert np.abs(image - upright).mean() < 8


def test_a_pil_image_equals_its_file() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = encoded(smooth(), exif=exif)
    np.testing.assert_array_equal(
        image_from_pil(Image.open(io.BytesIO(content)), "x"), decode_image(content, "x")
    )


def test_the_array_is_writable() -> None:
    assert decode_image(encoded(smooth()), "x").flags.writeable


# ---- 16 bits and floating point


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_rounded_not_clipped(format: str) -> None:
    levels = np.array([[0, 128, 129, 256, 32767, 32768, 65406, 65407, 65535]], np.uint16)
    image = decode_image(encoded(Image.fromarray(levels), format), "x")
    np.testing.assert_array_equal(image[0, :, 0], np.rint(levels[0] / 257).astype(int))


def test_big_endian_16_bit_grey_is_read() -> None:
    image = Image.frombytes("I;16B", (2, 1), bytes([0x01, 0x01, 0xFF, 0xFF]))
    assert image_from_pil(image, "x")[0, :, 0].tolist() == [1, 255]


@pytest.mark.parametrize("level", [-1, 65536])
def test_grey_levels_beyond_16_bits_are_refused(level: int) -> None:
    image = Image.fromarray(np.array([[0, level]], np.int32))
    with pytest.raises(InputError, match=r"its grey levels must be in \[0, 65535\], got"):
        image_from_pil(image, "x")


def test_floating_point_pixels_are_refused() -> None:
    content = encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(InputError, match="floating point"):
        decode_image(content, "x")


# ---- arrays


def test_an_rgb_array_is_not_copied() -> None:
    array = noise(5, 7, 3)
    assert np.shares_memory(image_from_array(array, "x"), array)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_a_grey_array_is_repeated(shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    expected = np.stack([array.reshape(5, 7)] * 3, axis=2)
    np.testing.assert_array_equal(image_from_array(array, "x"), expected)


def test_an_rgba_array_loses_alpha() -> None:
    array = noise(5, 7, 4)
    np.testing.assert_array_equal(image_from_array(array, "x"), array[:, :, :3])


@pytest.mark.parametrize("shape", [(3, 5, 7), (5, 7, 2), (5,), (1, 5, 7, 3), (0, 7, 3)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"array must be uint8 of shape .*, got shape \("):
        image_from_array(np.zeros(shape, np.uint8), "3")


def test_arrays_of_other_dtypes_are_refused() -> None:
    with pytest.raises(InputError, match=r"3: array must be uint8 .*, got float32"):
        image_from_array(np.zeros((5, 7, 3), np.float32), "3")


# ---- what is no image


def reason_of(content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        decode_image(content, "photo.jpg")
    assert caught.value.item == "photo.jpg"
    return caught.value.reason


def test_no_bytes_are_called_empty() -> None:
    assert reason_of(b"") == "it is empty"


def test_text_is_called_no_image() -> None:
    assert reason_of(b"<!DOCTYPE html><html></html>") == (
        "it is not an image in a format that Pillow reads"
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_half_a_file_is_refused(format: str) -> None:
    content = encoded(Image.fromarray(noise(64, 64, 3)), format)
    assert reason_of(content[: len(content) // 2])


def test_half_a_jpeg_is_called_truncated() -> None:
    content = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    assert reason_of(content[: len(content) // 2]).startswith("it is truncated: ")


def test_a_decompression_bomb_is_called_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert reason_of(encoded(Image.new("L", (20, 11)))).startswith("it is too large: ")


def test_an_image_below_twice_the_limit_is_read_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(encoded(Image.new("L", (20, 10))), "x").shape == (10, 20, 3)


def test_broken_exif_beside_good_pixels_is_ignored() -> None:
    # An EXIF block whose first entry points behind its end: Pillow warns, and warnings are errors.
    block = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0e\x01\x02\0\xff\0\0\0\xff\xff\0\0\x12"
    content = encoded(smooth(), "JPEG", exif=block)
    assert decode_image(content, "x").shape == (24, 32, 3)


def test_postscript_is_not_run() -> None:
    content = encoded(smooth(), "EPS")
    assert reason_of(content) == "it is not an image in a format that Pillow reads"


def test_a_closed_pil_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(smooth()))
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(InputError, match=r"3: it is damaged: .*closed"):
        image_from_pil(image, "3")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "APNG"])
def test_damaged_files_give_an_array_or_an_input_error(
    format: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)  # a damaged size must not cost memory
    image = Image.fromarray(noise(24, 31, 3))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {"save_all": True, "append_images": [image.rotate(90)]} if format == "APNG" else {}
    if Image.registered_extensions().get(f".{format.lower()}") is None:
        pytest.skip(f"this build of Pillow has no {format}")
    content = encoded(image, "PNG" if format == "APNG" else format, exif=exif, **options)
    outcomes = set()
    for trial in range(300):
        broken = bytearray(content[: rng.integers(1, len(content))] if trial % 3 == 0 else content)
        for _ in range(trial % 3):
            # The headers, where damage does most, get half of it.
            end = len(broken) if trial % 2 else min(len(broken), 200)
            broken[rng.integers(end)] = rng.integers(256)
        try:
            decoded = decode_image(bytes(broken), "x")
            outcomes.add((decoded.dtype, decoded.ndim, decoded.shape[2]))
        except InputError as error:
            outcomes.add(bool(error.reason))
    assert outcomes <= {(np.dtype("u1"), 3, 3), True}
    assert True in outcomes


# ---- files


def test_a_file_gives_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert read_file(tmp_path / "a") == b"content"


def file_reason(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert caught.value.item == str(path)
    return caught.value.reason


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert file_reason(tmp_path / "none") == "there is no such file"


def test_a_dangling_link_is_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    assert file_reason(tmp_path / "link") == "there is no such file"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert file_reason(tmp_path) == "it is a directory"


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert file_reason(tmp_path / "pipe") == "it is not a regular file"


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may have 107 bytes at most
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
        assert file_reason("socket").startswith("it cannot be read: ")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert file_reason(tmp_path / "a") == "it is empty"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_forbidden_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "a").chmod(0)
    assert file_reason(tmp_path / "a") == "it cannot be read: Permission denied"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
def test_a_read_error_is_named() -> None:
    # Address 0 is mapped in no process: reading it is an input/output error.
    assert file_reason("/proc/self/mem") == "it cannot be read: Input/output error"


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    assert file_reason(tmp_path / ("a" * 300)) == "it cannot be read: File name too long"


def test_a_name_with_a_null_byte_is_refused() -> None:
    assert file_reason("a\0b").startswith("it cannot be read: ")
