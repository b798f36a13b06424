"""Decoded pixels to what a backbone takes: resize, centre crop, normalise, channels first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfeat._config import num_threads
from pyfeat.ops._check import why_not_cpp, why_not_cuda, why_not_triton
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._preprocess_device import run_cuda, run_triton
from pyfeat.ops._preprocess_reference import Image, reference, table_of
from pyfeat.ops._preprocess_spec import Preprocessing, geometry

__all__ = ["BACKENDS", "Preprocessing", "preprocess", "preprocess_batch"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)


def preprocess(
    image: Image,
    spec: Preprocessing,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Resize, centre-crop and normalise one image.

    Only the rows and columns that survive the crop are computed: an image of extreme aspect ratio
    costs no more than a square one.

    Parameters
    ----------
    image : ndarray or Tensor of shape (h, w, 3), uint8
        RGB pixels, h and w at least 1. Not changed. Any strides.
    spec : Preprocessing
        Sizes, filter, mode, flip and normalisation.
    dtype : {torch.float32, torch.bfloat16, torch.float16, torch.uint8}, default=torch.float32
        Type of the result. bfloat16 and float16 are the float32 value rounded to nearest, ties to
        even. uint8 is the resized pixel itself, for a backbone that normalises on its own.
    out : Tensor of shape (3, spec.crop, spec.crop), `dtype`, contiguous, optional
        Where to write, for example one slot of a batch. By default a new tensor on the device of
        `image`.
    backend : {"cuda", "triton", "cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    pixels : Tensor of shape (3, spec.crop, spec.crop), `dtype`
        `out` when it was given. (v / 255 - mean) / std, v the resized pixel; v itself as uint8.

    Raises
    ------
    TypeError
        If `image` is neither array nor tensor, or holds no uint8, `dtype` is another type, or `out`
        no tensor.
    ValueError
        If `image` or `out` has another shape, or `out` another dtype, or is not contiguous.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    Geometry of mode "crop" is that of torchvision's ``Resize(resize)`` and ``CenterCrop(crop)``:
    the short side becomes `resize`, the long side ``int(resize * long / short)``, and the crop
    starts at ``round((side - crop) / 2)``, ties to even. Mode "stretch" is ``Resize((resize,
    resize))`` and the same crop. In mode "pad" the sides become ``round(side / (long / resize))``,
    as in timm, at least 1; `spec.fill` surrounds what is smaller than `crop`, an odd pixel coming
    last, and what is larger is cut. With `hflip` the result is mirrored.

    Pixels are those of Pillow's ``Image.resize`` in the pass order of Pillow 12 and earlier, bit
    for bit: first across, then down, with weights w[i, x] = f((x + 1/2 - c[i]) / s) / sum,
    c[i] = (i + 1/2) * scale, s = max(scale, 1), f the triangle or Keys' cubic with a = -1/2 [1]_,
    computed in float64 and rounded to multiples of 2^-22. Each pass sums integers, rounds and clips
    to a byte. Hence every backend and instruction set gives the same bits.

    Pillow 13 goes down first when it reduces a tall image, more than about twice as high as wide,
    and rounds other intermediate pixels: there, on photos, a few pixels differ by a few levels of
    255, on noise most of them. Here the order is fixed, so that the identity of a row does not
    depend on the version of Pillow. All other images are equal to Pillow 13's too.

    Memory: 3 * crop bytes for each source row that survives the crop, `crop` rounded up to a
    multiple of 64 by "cpp". "cpp" releases the GIL and may run in several threads at once; each
    keeps the weights of the last few sizes of image.

    References
    ----------
    .. [1] Keys. Cubic convolution interpolation for digital image processing. IEEE Trans. ASSP
       29(6), 1981, eq. 4.

    Examples
    --------
    >>> white = np.full((40, 60, 3), 255, dtype=np.uint8)
    >>> pixels = preprocess(white, Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    >>> pixels.shape, float(pixels.min()), float(pixels.max())
    (torch.Size([3, 224, 224]), 1.0, 1.0)
    """
    _check_image(image, "image")
    _check_out(out, (3, spec.crop, spec.crop), dtype)
    slots = None if out is None else out[None]
    result = _run([image], spec, dtype, slots, backend)
    return result[0] if out is None else out


def preprocess_batch(
    images: Sequence[Image],
    spec: Preprocessing,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Resize, centre-crop and normalise images of any sizes into one batch.

    Parameters
    ----------
    images : sequence of ndarray or Tensor of shape (h, w, 3), uint8
        n images, each as in `preprocess`; they may differ in size, but not in device. An array or
        tensor of shape (n, h, w, 3) is such a sequence.
    spec, dtype, backend
        As in `preprocess`.
    out : Tensor of shape (n, 3, spec.crop, spec.crop), `dtype`, contiguous, optional
        Where to write. By default a new tensor on the device of the images.

    Returns
    -------
    pixels : Tensor of shape (n, 3, spec.crop, spec.crop), `dtype`
        `out` when it was given. Row i is ``preprocess(images[i], spec)``, to the bit.

    Raises
    ------
    TypeError, ValueError, BackendError
        As `preprocess`, with the number of the image; and if the images are on several devices.

    Notes
    -----
    "cpp" hands whole images to up to `PYFEAT_NUM_THREADS` threads, without the GIL; the number of
    threads does not change a bit.

    Examples
    --------
    >>> images = [np.zeros((40, 60, 3), np.uint8), np.zeros((500, 375, 3), np.uint8)]
    >>> preprocess_batch(images, Preprocessing(), dtype=torch.uint8).shape
    torch.Size([2, 3, 224, 224])
    """
    for i, image in enumerate(images):
        _check_image(image, f"images[{i}]")
    devices = sorted({str(image.device) for image in images if isinstance(image, Tensor)})
    if any(isinstance(image, np.ndarray) for image in images):
        devices = sorted({*devices, "cpu"})
    if len(devices) > 1:
        raise ValueError(f"images must be on one device, got {devices}")
    _check_out(out, (len(images), 3, spec.crop, spec.crop), dtype)
    return _run(images, spec, dtype, out, backend)


def _run(
    images: Sequence[Image],
    spec: Preprocessing,
    dtype: torch.dtype,
    out: Tensor | None,
    backend: str | None,
) -> Tensor:
    chosen = choose("preprocess", BACKENDS, backend, images, spec, dtype, out)
    if out is None:
        first = images[0] if len(images) else None
        device = first.device if isinstance(first, Tensor) else torch.device("cpu")
        shape = (len(images), 3, spec.crop, spec.crop)
        out = torch.empty(shape, dtype=dtype, device=device)
    if len(images):
        chosen.run(images, spec, dtype, out)
    return out


def _check_image(image: Image, name: str) -> None:
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"{name} must be an ndarray or a Tensor, got {type(image).__name__}")
    if image.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"{name} must have dtype uint8, got {image.dtype}")
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"{name} must have shape (h, w, 3) with h and w at least 1, got {shape}")


def _check_out(out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {list(DTYPES)}, got {dtype}")
    if out is None:
        return
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a Tensor, got {type(out).__name__}")
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}, got {tuple(out.shape)}")
    if out.dtype != dtype:
        raise ValueError(f"out must have dtype {dtype}, got {out.dtype}")
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()}")


def _pixel_rows(image: Image) -> NDArray[np.uint8]:
    """Return an array whose pixels of a row are adjacent: the image's own memory if they are."""
    source: NDArray[np.uint8] = image.numpy() if isinstance(image, Tensor) else image
    if source.strides[1:] != (3, 1) or source.strides[0] < 3 * source.shape[1]:
        return np.ascontiguousarray(source)
    return source


def _cpp(images: Sequence[Image], spec: Preprocessing, dtype: torch.dtype, out: Tensor) -> None:
    from pyfeat._core import preprocess as run

    sources = [_pixel_rows(image) for image in images]  # alive until the call is over
    jobs = [
        (
            s.__array_interface__["data"][0],
            s.strides[0],
            *s.shape[:2],
            *geometry(s.shape[0], s.shape[1], spec),
        )
        for s in sources
    ]
    # Held until the call is over: the cache drops what two threads make of one spec at once.
    table = table_of(spec, dtype)
    r, g, b = spec.fill
    run(
        np.array(jobs, dtype=np.int64),
        crop=spec.crop,
        bicubic=spec.interpolation == "bicubic",
        hflip=spec.hflip,
        fill=r | g << 8 | b << 16,
        table=table.data_ptr(),
        item_bytes=out.element_size(),
        out=out.data_ptr(),
        threads=num_threads() if len(jobs) > 1 else 1,
    )


_HOST = torch.empty(0, device="cpu")  # stands for arrays, which are on the CPU


def _refuses(why_not: Callable[..., str | None]) -> Callable[..., str | None]:
    def refuses(
        images: Image | Sequence[Image],
        spec: Preprocessing,
        dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
    ) -> str | None:
        # `explain` asks with one image, `choose` with a sequence whose devices are equal.
        several = not isinstance(images, np.ndarray | Tensor)
        image = images[0] if several and len(images) else images
        pixels = image if isinstance(image, Tensor) else _HOST
        if why := why_not(image=pixels, out=out):
            return why
        if out is not None and out.device != pixels.device and len(images):
            return f"out must be on {pixels.device}, got {out.device}"
        return None

    return refuses


BACKENDS = (
    Backend("cuda", run_cuda, _refuses(why_not_cuda)),
    Backend("triton", run_triton, _refuses(why_not_triton)),
    Backend("cpp", _cpp, _refuses(why_not_cpp)),
    Backend("reference", reference, never_refuses),
)
