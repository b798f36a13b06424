"""The op `preprocess` against Pillow, torchvision and its own reference."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pyfeat._identity import canonical_json
from pyfeat.ops import Preprocessing, preprocess, preprocess_batch
from pyfeat.ops._preprocess_reference import table_of
from pyfeat.ops._preprocess_spec import geometry

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Pixels come back as they were: (v / 255 - 0) / 1, times 255, is v again after rounding.
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
# (h, w), (resize, crop): up and down, odd, prime, one pixel, crop of everything, smaller than crop.
SIZES = [
    ((1, 1), (8, 5)),
    ((1, 9), (6, 6)),
    ((9, 1), (6, 5)),
    ((2, 3), (256, 224)),
    ((17, 19), (23, 11)),
    ((37, 53), (64, 64)),
    ((97, 101), (31, 29)),
    ((100, 150), (64, 56)),
    ((256, 300), (256, 224)),
    ((300, 256), (256, 224)),
    ((256, 256), (256, 256)),
    ((375, 500), (256, 224)),
    ((500, 375), (256, 224)),
    ((10, 2000), (8, 7)),
    ((2000, 10), (8, 7)),
    ((90, 131), (3, 1)),
]
INTERPRETED_PIXELS = 61_000


def noise(rng, shape):
    return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)


def photo(rng, shape):
    """Return noise whose lower half is black and white only: there, overshoot must be clipped."""
    image = noise(rng, shape)
    lower = image[shape[0] // 2 :]
    lower[...] = (lower > 127) * np.uint8(255)
    return image


def pillow(image, spec):
    """Return Pillow's pixels (3, crop, crop).

    One direction a call: Pillow 13 goes down first where older versions go across first.
    """
    h, w, _ = image.shape
    longer = int(spec.resize * max(h, w) / min(h, w))
    width, height = (spec.resize, longer) if w <= h else (longer, spec.resize)
    how = FILTERS[spec.interpolation]
    resized = Image.fromarray(image).resize((width, h), how).resize((width, height), how)
    top, left = round((height - spec.crop) / 2), round((width - spec.crop) / 2)
    pixels = np.asarray(resized.crop((left, top, left + spec.crop, top + spec.crop)))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def to_bytes(pixels):
    return (pixels.cpu() * 255).round().to(torch.uint8)


def run(image, spec, backend, **options):
    """Run one image where the backend wants it, and bring the result back."""
    interpreted = (backend.name, backend.device) == ("triton", "cpu")
    if interpreted and image.shape[0] * image.shape[1] > INTERPRETED_PIXELS:
        pytest.skip("too slow in Triton's interpreter")
    if backend.device != "cpu":
        image = torch.from_numpy(np.array(image)).to(backend.device)
    return preprocess(image, spec, backend=backend.name, **options).cpu()


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("shape", "sizes"), SIZES)
def test_pixels_equal_pillow(backend, rng, shape, sizes, interpolation):
    spec = Preprocessing(*sizes, interpolation, **PLAIN)
    image = photo(rng, shape)
    got = to_bytes(run(image, spec, backend))
    assert torch.equal(got, pillow(image, spec))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("shape", "sizes"), SIZES)
def test_reference_pixels_equal_pillow(rng, shape, sizes, interpolation):
    spec = Preprocessing(*sizes, interpolation, **PLAIN)
    image = photo(rng, shape)
    got = to_bytes(preprocess(image, spec, backend="reference"))
    assert torch.equal(got, pillow(image, spec))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("h", "w"),
    [(1, 1), (1, 9), (40, 20), (97, 101), (375, 500), (500, 375), (600, 300), (10, 2000)],
)
def test_pixels_equal_one_call_of_pillow(backend, rng, h, w, interpolation):
    # `pillow` above makes two calls, and so hid which images a single one gives other pixels for:
    # those more than about twice as high as wide, which Pillow 13 reduces down first.
    size = min(h, w, 224)
    spec = Preprocessing(size, size, interpolation, **PLAIN)
    image = photo(rng, (h, w))
    longer = int(size * max(h, w) / min(h, w))
    width, height = (size, longer) if w <= h else (longer, size)
    resized = Image.fromarray(image).resize((width, height), FILTERS[interpolation])
    top, left = round((height - size) / 2), round((width - size) / 2)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)))
    got = to_bytes(run(image, spec, backend))
    assert torch.equal(got, torch.from_numpy(pixels.transpose(2, 0, 1).copy()))


def test_random_sizes_equal_pillow(backend, rng):
    for _ in range(25):
        h, w = (int(v) for v in np.exp(rng.uniform(0, 5.5, 2)))
        resize = int(rng.integers(1, 60))
        spec = Preprocessing(resize, int(rng.integers(1, resize + 1)), **PLAIN)
        image = photo(rng, (h, w))
        got = to_bytes(run(image, spec, backend))
        assert torch.equal(got, pillow(image, spec)), (h, w, spec)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", [(375, 500), (480, 640), (250, 200), (31, 47)])
def test_equals_torchvision_transforms(backend, rng, shape, interpolation):
    from torchvision import transforms

    spec = Preprocessing(interpolation=interpolation)
    pipeline = transforms.Compose(
        [
            transforms.Resize(spec.resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(spec.crop),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    image = noise(rng, shape)
    expected = pipeline(Image.fromarray(image))
    assert torch.equal(run(image, spec, backend), expected)


@pytest.mark.parametrize("shape", [(1, 1), (300, 200), (10, 5000), (5000, 10)])
def test_equals_reference(backend, rng, shape):
    image = noise(rng, shape)
    spec = Preprocessing(std=(0.2, 0.3, 0.4))
    expected = preprocess(image, spec, backend="reference")
    assert torch.equal(run(image, spec, backend), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_the_rounded_float32(backend, rng, dtype):
    image = noise(rng, (60, 80))
    exact = preprocess(image, Preprocessing(), backend="reference")
    assert torch.equal(run(image, Preprocessing(), backend, dtype=dtype), exact.to(dtype))


@pytest.mark.parametrize("mode", ["crop", "stretch", "pad"])
def test_uint8_is_the_pixel_before_normalisation(backend, rng, mode):
    image = photo(rng, (60, 83))
    spec = Preprocessing(41, 37, mode=mode)
    pixels = run(image, spec, backend, dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    assert torch.equal((pixels.float() / 255 - mean) / std, run(image, spec, backend))


@pytest.mark.parametrize("shape", [(40, 60), (61, 37), (7, 100)])
def test_stretched_pixels_equal_pillow(backend, rng, shape):
    image = photo(rng, shape)
    spec = Preprocessing(33, 33, mode="stretch")
    # One direction a call, as in `pillow`.
    pixels = Image.fromarray(image).resize((33, shape[0]), FILTERS["bicubic"])
    pixels = np.asarray(pixels.resize((33, 33), FILTERS["bicubic"])).transpose(2, 0, 1)
    got = run(image, spec, backend, dtype=torch.uint8)
    assert np.array_equal(got.numpy(), pixels)


def test_padded_sides_round_as_those_of_timm():
    timm_transforms = pytest.importorskip("timm.data.transforms")
    to = timm_transforms.ResizeKeepRatio(232, longest=1.0)
    # 450 * 232 / 480 is a tie, 217.5; 450 / (480 / 232) is less.
    for h, w in [(450, 480), (480, 450), (221, 272)]:
        width, height = to(Image.new("RGB", (w, h))).size
        assert geometry(h, w, Preprocessing(232, 224, mode="pad"))[:2] == (height, width)


@pytest.mark.parametrize("crop", [31, 20])
@pytest.mark.parametrize("mode", ["stretch", "pad"])
@pytest.mark.parametrize("shape", [(40, 60), (41, 37), (31, 30), (2, 90), (1, 1)])
def test_modes_equal_timm_transforms(backend, rng, shape, mode, crop):
    timm_data = pytest.importorskip("timm.data")
    spec = Preprocessing(31, crop, mode=mode)
    transform = timm_data.create_transform(
        (3, crop, crop),
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=crop / 31,
        crop_mode={"stretch": "squash", "pad": "border"}[mode],
    )
    image = photo(rng, shape)
    got = run(image, spec, backend)
    assert torch.equal(got, transform(Image.fromarray(image)))


@pytest.mark.parametrize("mode", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(40, 60), (60, 41), (9, 2)])
def test_flip_mirrors_the_result(backend, rng, shape, mode):
    image = noise(rng, shape)
    plain = run(image, Preprocessing(30, 23, mode=mode), backend)
    flipped = run(image, Preprocessing(30, 23, mode=mode, hflip=True), backend)
    assert torch.equal(flipped, plain.flip(2))


@given(
    sides=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    resize=st.integers(1, 40),
    cut=st.integers(0, 39),
    mode=st.sampled_from(["crop", "stretch", "pad"]),
    hflip=st.booleans(),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_setting_equals_reference(backend, sides, resize, cut, mode, hflip, interpolation):
    spec = Preprocessing(resize, max(resize - cut, 1), interpolation, mode=mode, hflip=hflip)
    image = photo(np.random.default_rng(sum(sides)), sides)
    expected = preprocess(image, spec, backend="reference")
    assert torch.equal(run(image, spec, backend), expected)


def test_batch_equals_its_images_one_by_one(backend, rng, monkeypatch):
    sizes = [(40, 60), (9, 2), (60, 41), (1, 1), (50, 90), (50, 90)]
    images = [torch.from_numpy(noise(rng, size)).to(backend.device) for size in sizes]
    spec = Preprocessing(30, 28, mode="pad")
    alone = torch.stack([preprocess(i, spec, backend=backend.name) for i in images])
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
        assert torch.equal(preprocess_batch(images, spec, backend=backend.name), alone)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_batch_may_be_empty(name):
    assert preprocess_batch([], Preprocessing(8, 4), backend=name).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_batch_is_written_where_asked(rng, name):
    out = torch.empty(2, 3, 8, 8, dtype=torch.uint8)
    images = [noise(rng, (9, 9)), noise(rng, (12, 8))]
    spec = Preprocessing(8, 8)
    assert preprocess_batch(images, spec, dtype=torch.uint8, out=out, backend=name) is out
    assert torch.equal(out[1], preprocess(images[1], spec, dtype=torch.uint8))


def test_batch_names_the_bad_image():
    images = [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)]
    with pytest.raises(ValueError, match=r"images\[1\] must have shape \(h, w, 3\)"):
        preprocess_batch(images, Preprocessing())


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2],
        lambda a: a[:, 5:40],
        lambda a: a[:, ::3],
        lambda a: a[::-1],
        lambda a: a[:, ::-1],
        lambda a: a[..., ::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.broadcast_to(a[:1], (30, *a.shape[1:])),
    ],
)
def test_strides_do_not_matter(backend, rng, view):
    image = view(noise(rng, (50, 70)))
    spec = Preprocessing(32, 28)
    expected = run(image.copy(), spec, backend)
    assert torch.equal(run(image, spec, backend), expected)


def test_non_contiguous_tensor(backend, rng):
    planes = torch.from_numpy(noise(rng, (40, 50))).permute(2, 0, 1).contiguous()
    image = planes.permute(1, 2, 0)
    spec = Preprocessing(32, 28)
    expected = preprocess(image.contiguous(), spec, backend="reference")
    assert torch.equal(run(image, spec, backend), expected)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_read_only_image(rng, name):
    image = noise(rng, (40, 50))
    expected = preprocess(image.copy(), Preprocessing(), backend=name)
    image.flags.writeable = False
    assert torch.equal(preprocess(image, Preprocessing(), backend=name), expected)


def test_image_at_the_end_of_its_page(backend, rng, end_of_page):
    # A kernel that reads past the last pixel meets memory that may not be read.
    for h, w in [(1, 1), (3, 5), (40, 31), (31, 40)]:
        image = end_of_page[-h * w * 3 :].reshape(h, w, 3)
        image[:] = noise(rng, (h, w))
        expected = preprocess(image, Preprocessing(28, 24), backend="reference")
        got = run(image, Preprocessing(28, 24), backend)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_out_slot_is_filled_and_neighbours_are_not_touched(rng, name):
    batch = torch.full((3, 3, 28, 28), 7.0)
    image = noise(rng, (40, 50))
    spec = Preprocessing(32, 28)
    result = preprocess(image, spec, out=batch[1], backend=name)
    assert result.data_ptr() == batch[1].data_ptr()
    assert torch.equal(batch[1], preprocess(image, spec))
    assert bool((batch[::2] == 7).all())


def test_image_is_not_changed(backend, rng):
    image = noise(rng, (40, 50))
    before = image.copy()
    run(image, Preprocessing(), backend)
    assert np.array_equal(image, before)


def test_threads_that_meet_a_setting_first_at_once_get_its_values(rng):
    # Bug: each made the table of values, all but one was freed before the kernel read it.
    image = noise(rng, (40, 50))
    for size in range(20, 60):
        spec = Preprocessing(size, size)
        at_once = Barrier(8)

        def meet(spec=spec, at_once=at_once):
            at_once.wait()
            return preprocess(image, spec, backend="cpp")

        with ThreadPoolExecutor(8) as pool:
            found = [f.result() for f in [pool.submit(meet) for _ in range(8)]]
        expected = preprocess(image, spec, backend="reference")
        assert all(torch.equal(pixels, expected) for pixels in found)


def test_eight_threads_give_the_same_bytes(backend, rng):
    if (backend.name, backend.device) == ("triton", "cpu"):
        pytest.skip("Triton's interpreter is not made for threads")
    images = [noise(rng, (100 + 3 * i, 140)) for i in range(8)]
    alone = [run(i, Preprocessing(), backend) for i in images]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda i: run(i, Preprocessing(), backend), images * 8)
        assert all(torch.equal(a, b) for a, b in zip(alone * 8, together, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"resize": 0}, ValueError, "resize must be at least 1, got 0"),
        ({"resize": 2.5}, TypeError, "resize must be an integer, got 2.5"),
        ({"crop": 300}, ValueError, r"crop must be in \[1, resize=256\], got 300"),
        ({"crop": 0}, ValueError, r"crop must be in \[1, resize=256\], got 0"),
        ({"interpolation": "nearest"}, ValueError, "interpolation must be one of"),
        ({"mean": (0.5, 0.5)}, ValueError, "mean must be three finite numbers"),
        ({"std": (0.5, float("nan"), 0.5)}, ValueError, "std must be three finite numbers"),
        ({"std": (0.5, 0.0, 0.5)}, ValueError, "std must be above 0"),
        (
            {"mode": "fit"},
            ValueError,
            r"mode must be one of \['crop', 'stretch', 'pad'\], got 'fit'",
        ),
        ({"hflip": 2}, TypeError, "hflip must be a bool, got 2"),
    ],
)
def test_rejects_setting(change, error, message):
    with pytest.raises(error, match=message):
        Preprocessing(**change)


def test_lists_and_tuples_make_equal_settings():
    assert Preprocessing(mean=[0.5, 0.5, 0.5]) == Preprocessing(mean=(0.5, 0.5, 0.5))


def test_parts_are_json_and_name_what_was_chosen():
    parts = Preprocessing(mode="pad", hflip=True).to_parts()
    assert json.loads(json.dumps(parts)) == parts
    named = {"resize", "crop", "interpolation", "antialias", "mean", "std", "mode", "hflip"}
    assert set(parts) == named


def test_default_parts_are_those_of_stores_made_before_there_were_modes():
    assert canonical_json(Preprocessing().to_parts()) == (
        '{"antialias":true,"crop":224,"interpolation":"bicubic","mean":[0.485,0.456,0.406],'
        '"resize":256,"std":[0.229,0.224,0.225]}'
    )


@pytest.mark.parametrize("change", [{}, {"mode": "stretch"}, {"hflip": True}])
def test_settings_come_back_from_their_parts(change):
    spec = Preprocessing(**change)
    assert Preprocessing.from_parts(spec.to_parts()) == spec


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([[1, 2, 3]], TypeError, "image must be an ndarray or a Tensor, got list"),
        (np.zeros((4, 4, 3), np.float32), TypeError, "image must have dtype uint8, got float32"),
        (torch.zeros(4, 4, 3), TypeError, "image must have dtype uint8, got torch.float32"),
        (np.zeros((4, 4), np.uint8), ValueError, r"image must have shape \(h, w, 3\)"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"image must have shape .* got \(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"h and w at least 1, got \(0, 4, 3\)"),
    ],
)
def test_rejects_image(image, error, message):
    with pytest.raises(error, match=message):
        preprocess(image, Preprocessing())


def test_rejects_dtype():
    with pytest.raises(TypeError, match=r"dtype must be one of \[torch.float32, .*\], got"):
        preprocess(np.zeros((4, 4, 3), np.uint8), Preprocessing(), dtype=torch.float64)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty(3, 5, 4), r"out must have shape \(3, 4, 4\), got \(3, 5, 4\)"),
        (torch.empty(3, 4, 4, dtype=torch.bfloat16), "out must have dtype torch.float32, got"),
        (torch.empty(4, 4, 3).permute(2, 0, 1), "out must be contiguous, got strides"),
    ],
)
def test_rejects_out(out, message):
    with pytest.raises(ValueError, match=message):
        preprocess(np.zeros((4, 4, 3), np.uint8), Preprocessing(8, 4), out=out)


def test_out_must_be_a_tensor():
    with pytest.raises(TypeError, match="out must be a Tensor, got ndarray"):
        preprocess(
            np.zeros((4, 4, 3), np.uint8), Preprocessing(8, 4), out=np.zeros((3, 4, 4), np.float32)
        )


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_default_device_of_torch_does_not_matter(rng, name):
    # The look-up table was made on the default device, and its address handed to a CPU kernel.
    image, spec = noise(rng, (9, 12)), Preprocessing(8, 7)
    expected = preprocess(image, spec, backend=name)
    table_of.cache_clear()
    with torch.device("meta"):
        got = preprocess(image, spec, backend=name)
    assert torch.equal(got, expected)
