"""What a caller of FeatureExtractor may rely on."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import pyfeat
from pyfeat import FeatureExtractor, FeatureStore, Space
from pyfeat.backbones import load_backbone
from pyfeat.errors import BackendError, InputError, SpaceError, StoreWarning
from pyfeat.extract._batches import Batches, forward_of
from pyfeat.extract._readers import reader_of
from pyfeat.ops import decode
from pyfeat.store import as_kept

from .conftest import SMALL, Seen, SmallBackbone


def extractor(backbone: nn.Module, **kwargs: Any) -> FeatureExtractor:
    return FeatureExtractor(backbone, preprocessing=SMALL, device="cpu", **kwargs)


# Rows of the backbone run by hand, one image at a time, in float64.
def expected_rows(paths: list[str]) -> np.ndarray:
    backbone = SmallBackbone().double()
    rows = []
    for path in paths:
        image = Image.open(path)
        w, h = image.size
        short = min(w, h)
        image = image.resize((int(36 * w / short), int(36 * h / short)), Image.Resampling.BILINEAR)
        left = round((image.width - 32) / 2.0)
        top = round((image.height - 32) / 2.0)
        pixels = np.asarray(image.crop((left, top, left + 32, top + 32)), np.float64) / 255
        x = torch.from_numpy((pixels - SMALL.mean) / SMALL.std).permute(2, 0, 1)[None]
        with torch.no_grad():
            rows.append(backbone(x).mean(dim=(2, 3))[0].numpy())
    return np.stack(rows)


# --- what goes in -----------------------------------------------------------------------------


def test_rows_are_those_of_the_backbone_run_by_hand(
    backbone: SmallBackbone, photos: list[str]
) -> None:
    got = extractor(backbone).transform(photos)
    want = expected_rows(photos)
    # 147 + 8 products a sum, 81 pixels averaged: a few hundred roundings of eps each at most.
    tolerance = 400 * np.finfo(np.float32).eps * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


def as_pandas(paths: list[str]) -> Any:
    return pytest.importorskip("pandas").Series(paths, index=range(5, 5 + len(paths)))


def as_polars(paths: list[str]) -> Any:
    return pytest.importorskip("polars").Series(paths)


FORMS: dict[str, Callable[[list[str]], Any]] = {
    "pathlib": lambda paths: [Path(p) for p in paths],
    "tuple": tuple,
    "bytes": lambda paths: [Path(p).read_bytes() for p in paths],
    "PIL": lambda paths: [Image.open(p) for p in paths],
    "arrays": lambda paths: [np.asarray(Image.open(p)) for p in paths],
    "object array": lambda paths: np.array(paths, dtype=object),
    "text array": np.array,
    "column vector": lambda paths: np.array(paths, dtype=object)[:, None],
    "pandas series": as_pandas,
    "pandas frame": lambda paths: as_pandas(paths).to_frame(),
    "polars series": as_polars,
    "polars frame": lambda paths: as_polars(paths).to_frame(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input_gives_the_rows_of_paths(
    backbone: SmallBackbone, photos: list[str], form: str
) -> None:
    transform = extractor(backbone, deterministic=True).transform
    np.testing.assert_array_equal(transform(FORMS[form](photos)), transform(photos))


def test_batch_of_arrays_gives_the_rows_of_its_images(
    backbone: SmallBackbone, rng: np.random.Generator
) -> None:
    batch = rng.integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    transform = extractor(backbone, deterministic=True).transform
    np.testing.assert_array_equal(transform(batch), transform(list(batch)))


def test_single_array_is_one_image(backbone: SmallBackbone, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert extractor(backbone).transform(image).shape == (1, 8)


def test_no_input_gives_no_rows(backbone: SmallBackbone) -> None:
    assert extractor(backbone).transform([]).shape == (0, 8)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("photo.png", r"X must be a list of inputs, got a single str: write \[X\]"),
        (np.zeros((2, 5)), r"X must have shape \(n, h, w, c\) or \(h, w, c\) .*, got \(2, 5\)"),
        (np.full((2, 2), "a", object), "X must have one column of inputs"),
    ],
    ids=["path", "matrix", "two columns"],
)
def test_input_of_another_form_is_refused(backbone: SmallBackbone, X: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extractor(backbone).transform(X)


def test_number_is_no_input(backbone: SmallBackbone) -> None:
    with pytest.raises(TypeError, match="X must be a list of inputs, got int"):
        extractor(backbone).transform(3)


def test_item_of_another_type_is_named(backbone: SmallBackbone, photos: list[str]) -> None:
    with pytest.raises(InputError, match=r"X\[1\]: must be a path, bytes, .* got float"):
        extractor(backbone).transform([photos[0], 3.0])


# --- threads ----------------------------------------------------------------------------------


NEXT_BATCH_WAS_READ = threading.Event()


class Watched:
    """An image that says when it is read."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        NEXT_BATCH_WAS_READ.set()
        return np.zeros((40, 40, 3), np.uint8)


class WaitsForNextBatch(SmallBackbone):
    """Goes on with a batch only when an image of the next one was read meanwhile."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 4:  # one image at a time is what loading tries it on
            assert NEXT_BATCH_WAS_READ.wait(timeout=30)
        return super().forward(x)


def test_images_are_read_while_the_backbone_works(rng: np.random.Generator) -> None:
    first = list(rng.integers(0, 256, (4, 40, 50, 3), dtype=np.uint8))
    fx = extractor(WaitsForNextBatch(), batch_size=4)
    assert fx.transform([*first, Watched(), Watched()]).shape == (6, 8)


# --- batch size -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 10, "auto"])
def test_deterministic_rows_do_not_depend_on_the_batch_size(
    backbone: SmallBackbone, photos: list[str], size: Any
) -> None:
    one = extractor(backbone, deterministic=True, batch_size=7).transform(photos)
    other = extractor(backbone, deterministic=True, batch_size=size).transform(photos[::-1])[::-1]
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_rows_agree_to_the_stated_tolerance_where_batches_are_not_cut_up(
    photos: list[str], size: int
) -> None:
    # As on a GPU: one forward pass for the whole batch.
    loaded = load_backbone("efficientnet_lite0", device="cpu")
    engine = copy.copy(loaded._engine)
    engine.chunk = None
    loaded = replace(loaded, chunk=None, _engine=engine)
    reader = reader_of(loaded, "exact")
    tensors = [reader.tensor(reader.content(p, p), p)[0] for p in photos]
    rows, _ = Batches(forward_of(loaded, reader), size)(tensors)
    chunked = load_backbone("efficientnet_lite0", device="cpu")(torch.stack(tensors)).numpy()
    error = np.linalg.norm(rows - chunked, axis=1) / np.linalg.norm(chunked, axis=1)
    assert error.max() <= 1e-5


def test_automatic_batch_shrinks_until_it_fits(photos: list[str]) -> None:
    sizes: list[int] = []

    def forward(tensors: Sequence[torch.Tensor]) -> np.ndarray:
        sizes.append(len(tensors))
        if len(tensors) > 3:
            raise torch.OutOfMemoryError("no room for more than 3")
        return torch.stack(list(tensors)).flatten(1).numpy()

    batches = Batches(forward, "auto")
    tensors = [torch.full((3, 2, 2), float(i)) for i in range(10)]
    rows, _ = batches(tensors)
    np.testing.assert_array_equal(rows[:, 0], np.arange(10.0))
    assert sizes == [10, 5, 2, 2, 2, 2, 2]


def test_batch_size_that_was_asked_for_does_not_shrink() -> None:
    def forward(tensors: Sequence[torch.Tensor]) -> np.ndarray:
        raise torch.OutOfMemoryError("no room")

    batches = Batches(forward, 8)
    with pytest.raises(torch.OutOfMemoryError):
        batches([torch.zeros(3, 2, 2)] * 8)


# --- store ------------------------------------------------------------------------------------


def test_second_call_computes_nothing(
    backbone: SmallBackbone, seen: Seen, photos: list[str], tmp_path: Path
) -> None:
    fx = extractor(backbone, store=tmp_path / "feats").fit()
    first = fx.transform(photos)
    seen.n = 0
    np.testing.assert_array_equal(fx.transform(photos), first)
    assert seen.n == 0


def test_equal_files_are_computed_once(
    backbone: SmallBackbone, seen: Seen, photos: list[str], tmp_path: Path
) -> None:
    copies = [str(shutil.copy(photos[0], tmp_path / f"copy{i}.png")) for i in range(5)]
    fx = extractor(backbone, store=tmp_path / "feats").fit()
    seen.n = 0
    rows = fx.transform([*copies, photos[1], *copies])
    assert seen.n == 2
    np.testing.assert_array_equal(rows[:5], rows[6:])


def test_renamed_file_is_a_hit(
    backbone: SmallBackbone, seen: Seen, photos: list[str], tmp_path: Path
) -> None:
    fx = extractor(backbone, store=tmp_path / "feats").fit()
    fx.transform(photos)
    seen.n = 0
    fx.transform([str(Path(p).rename(Path(p).with_suffix(".renamed"))) for p in photos])
    assert seen.n == 0


def test_changed_file_is_a_miss(
    backbone: SmallBackbone, seen: Seen, photos: list[str], tmp_path: Path
) -> None:
    fx = extractor(backbone, store=tmp_path / "feats").fit()
    fx.transform(photos)
    shutil.copy(photos[1], photos[0])
    Image.open(photos[2]).rotate(90).save(photos[2])
    seen.n = 0
    fx.transform(photos)
    assert seen.n == 1  # the copy is known, the turned photo is new


@pytest.mark.parametrize(
    "change",
    [
        {"preprocessing": replace(SMALL, interpolation="bicubic")},
        {"preprocessing": replace(SMALL, mean=(0.5, 0.5, 0.5))},
        {"dtype": "float16"},
        {"deterministic": True},
        {"decode": "fast"},
        {"backbone": SmallBackbone(seed=1)},
    ],
    ids=["filter", "mean", "dtype", "deterministic", "decode", "weights"],
)
def test_changed_setting_is_a_miss(
    backbone: SmallBackbone, seen: Seen, photos: list[str], tmp_path: Path, change: dict[str, Any]
) -> None:
    fx = extractor(backbone, store=tmp_path / "feats")
    fx.transform(photos)
    changed = clone(fx).set_params(**change).fit()
    seen.n = 0
    changed.transform(photos)
    assert seen.n == len(photos)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_rows_are_the_same_computed_and_stored(
    backbone: SmallBackbone, photos: list[str], tmp_path: Path, dtype: str
) -> None:
    fx = extractor(backbone, dtype=dtype, store=tmp_path / "feats")
    first = fx.transform(photos)
    assert first.dtype == (np.float16 if dtype == "float16" else np.float32)
    np.testing.assert_array_equal(fx.transform(photos), first)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rows_are_rounded_without_a_store_too(
    backbone: SmallBackbone, photos: list[str], dtype: str
) -> None:
    exact = extractor(backbone).transform(photos)
    got = extractor(backbone, dtype=dtype).transform(photos)
    np.testing.assert_array_equal(got, as_kept(exact, dtype))


def test_clones_in_a_pipeline_share_the_store(
    backbone: SmallBackbone, seen: Seen, photos: list[str], tmp_path: Path
) -> None:
    pipe = make_pipeline(extractor(backbone, store=tmp_path / "feats"), StandardScaler())
    pipe.fit(photos)
    seen.n = 0
    clone(pipe).fit(photos)
    assert seen.n == 0


def test_interrupted_call_keeps_what_it_computed(
    backbone: SmallBackbone, photos: list[str], tmp_path: Path
) -> None:
    def stop_at_six(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    fx = extractor(backbone, store=tmp_path / "feats", batch_size=2, progress=stop_at_six)
    with pytest.raises(KeyboardInterrupt):
        fx.transform(photos)
    assert len(FeatureStore(tmp_path / "feats", mode="r")) >= 6


def test_bad_item_raises_and_keeps_what_came_before(
    backbone: SmallBackbone, photos: list[str], tmp_path: Path
) -> None:
    Path(photos[8]).write_text("no image")
    fx = extractor(backbone, store=tmp_path / "feats", batch_size=2)
    with pytest.raises(InputError, match=r"8\.png: "):
        fx.transform(photos)
    assert len(FeatureStore(tmp_path / "feats", mode="r")) == 8


def test_bad_item_becomes_nan_on_request(backbone: SmallBackbone, photos: list[str]) -> None:
    want = extractor(backbone, deterministic=True).transform(photos)
    Path(photos[3]).write_text("no image")
    rows = extractor(backbone, deterministic=True, on_error="nan").transform(photos)
    assert np.isnan(rows[3]).all()
    np.testing.assert_array_equal(np.delete(rows, 3, 0), np.delete(want, 3, 0))


def test_damaged_row_is_computed_again(
    backbone: SmallBackbone, photos: list[str], tmp_path: Path
) -> None:
    fx = extractor(backbone, store=tmp_path / "feats", deterministic=True)
    first = fx.transform(photos)
    (segment,) = (tmp_path / "feats").glob("spaces/*/*.safetensors")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    with pytest.warns(StoreWarning, match="the row fails its checksum"):
        again = fx.transform(photos)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(fx.transform(photos), first)


def test_open_store_of_another_space_is_refused(
    backbone: SmallBackbone, photos: list[str], tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path / "feats", Space(8))
    with pytest.raises(SpaceError, match="store must come from space"):
        extractor(backbone, store=store).transform(photos)


def test_open_store_is_used_and_left_open(
    backbone: SmallBackbone, photos: list[str], tmp_path: Path
) -> None:
    space = extractor(backbone).get_space()
    with FeatureStore(tmp_path / "feats", space) as store:
        extractor(backbone, store=store).transform(photos[:5])
        extractor(backbone, store=store).transform(photos[5:])
        assert len(store) == len(photos)


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_row_that_is_not_finite_is_not_stored(
    photos: list[str], tmp_path: Path, value: float
) -> None:
    # 1e6 fits float32 and is infinite in float16.
    class Broken(SmallBackbone):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 8), value)

    fx = extractor(Broken(), store=tmp_path / "feats", dtype="float16")
    with pytest.raises(InputError, match="its row is not finite in float16"):
        fx.transform(photos)
    assert len(FeatureStore(tmp_path / "feats", mode="r")) == 0


def test_backend_block_holds_in_the_decoding_threads(
    backbone: SmallBackbone, photos: list[str]
) -> None:
    # The block was a setting of the calling thread, and the threads that decode never saw it.
    with pyfeat.backend("cuda"), pytest.raises(BackendError, match="backend 'cuda'"):
        extractor(backbone).transform(photos)


def test_photo_too_large_for_memory_is_named(
    backbone: SmallBackbone, photos: list[str], tmp_path: Path
) -> None:
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as f:
        f.truncate(1 << 43)  # 8 TiB, none of them on the disk
    with pytest.raises(InputError, match=r"huge\.jpg: it does not fit in memory"):
        extractor(backbone).transform([huge])


# --- scikit-learn -----------------------------------------------------------------------------


def test_feature_names_are_numbered(backbone: SmallBackbone) -> None:
    names = extractor(backbone).get_feature_names_out()
    assert names.tolist() == [f"featureextractor{i}" for i in range(8)]


def test_set_output_gives_a_frame(backbone: SmallBackbone, photos: list[str]) -> None:
    frame = extractor(backbone).set_output(transform="pandas").transform(photos)
    assert frame.shape == (10, 8)
    assert frame.columns[0] == "featureextractor0"


def test_clone_has_the_same_parameters(backbone: SmallBackbone) -> None:
    fx = extractor(backbone, batch_size=3, store="somewhere")
    copied = clone(fx).get_params()
    assert copied.pop("backbone") is not backbone
    want = fx.get_params()
    want.pop("backbone")
    assert copied == want


def test_there_is_no_n_features_in_for_raw_input(
    backbone: SmallBackbone, photos: list[str]
) -> None:
    fx = extractor(backbone)
    fx.fit_transform(photos)
    assert not hasattr(fx, "n_features_in_")


def test_pickled_extractor_gives_the_same_rows(backbone: SmallBackbone, photos: list[str]) -> None:
    fx = extractor(backbone, deterministic=True)
    again = pickle.loads(pickle.dumps(fx))
    np.testing.assert_array_equal(again.transform(photos), fx.transform(photos))


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 0), ("batch_size", True), ("dtype", "int4"), ("on_error", "skip")],
)
def test_bad_parameter_is_named(backbone: SmallBackbone, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
        extractor(backbone).set_params(**{name: value}).fit()


def test_progress_counts_every_item(backbone: SmallBackbone, photos: list[str]) -> None:
    calls: list[tuple[int, int]] = []
    extractor(backbone, progress=lambda d, t: calls.append((d, t))).transform(photos)
    assert calls == [(i, 10) for i in range(1, 11)]


def test_bar_shows_count_on_stderr(
    backbone: SmallBackbone, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    extractor(backbone, progress=True).transform(photos)
    assert "10/10" in capsys.readouterr().err


def test_jpeg_bytes_are_decoded(backbone: SmallBackbone, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    transform = extractor(backbone, deterministic=True).transform
    want = transform([np.asarray(Image.open(buffer))])
    np.testing.assert_array_equal(transform([buffer.getvalue()]), want)


def large_jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def test_fast_rows_are_those_of_the_file_decoded_smaller(backbone: SmallBackbone) -> None:
    content = large_jpeg()
    pixels = decode(content, mode="fast", target=SMALL.resize)
    assert pixels.shape == (40, 50, 3)
    want = extractor(backbone, deterministic=True).transform([pixels])
    got = extractor(backbone, deterministic=True, decode="fast").transform([content])
    np.testing.assert_array_equal(got, want)


def test_exact_rows_are_the_default_and_not_named_in_the_space(backbone: SmallBackbone) -> None:
    exact = extractor(backbone).get_space()
    assert exact == extractor(backbone, decode="exact").get_space()
    assert "decode" not in exact.parts
    fast = extractor(backbone, decode="fast").get_space()
    assert fast == Space(exact.dim, exact.dtype, {**exact.parts, "decode": "fast"})


def test_other_ways_to_decode_are_refused(backbone: SmallBackbone) -> None:
    with pytest.raises(ValueError, match=r"decode must be one of \['exact', 'fast'\], got 'quick'"):
        extractor(backbone, decode="quick").fit()
