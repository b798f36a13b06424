"""Frames out of video files: sampled uniformly, decoded no further than needed."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat.errors import InputError

# Formats that hold a video. Others would let a file name further files or addresses to be opened
# (playlists, ffconcat), or turn a text into pictures.
_FORMATS = (
    "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,apng,mxf,nut,"
    "ivf,h264,hevc,m4v,dv,rm,vob,wtv,yuv4mpegpipe"
)


Key = tuple[int, int]  # when a key frame is shown, and when it is decoded


class _NotTimed(Exception):
    """The time stamps of the packets do not lead to the wanted frames."""


def centres(n: int, count: int) -> list[int]:
    """Return the middle ones of `count` equal segments of `n` frames; all where there are fewer.

    Examples
    --------
    >>> centres(10, 2), centres(3, 8)
    ([2, 7], [0, 1, 2])
    """
    if n <= count:
        return list(range(n))
    return [(2 * i + 1) * n // (2 * count) for i in range(count)]


def decode_frames(
    content: bytes, count: int, name: str, *, seek: bool = True
) -> list[NDArray[np.uint8]]:
    """Return frames of a video file, RGB and upright.

    Parameters
    ----------
    content : bytes
        The file.
    count : int
        Most frames to return.
    name : str
        For messages.
    seek : bool, default=True
        Whether to jump to the key frame before a wanted frame. The frames are the same without it.

    Returns
    -------
    frames : list of ndarray of shape (h, w, 3), uint8
        Those at `centres`, in the order in which they are shown.

    Raises
    ------
    ImportError
        If PyAV is missing.
    InputError
        If the file is damaged, ends early, or holds no frame.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError('videos need av: pip install "pyfeat[video]"') from error
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(content), options=options, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise InputError(name, "it has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise InputError(name, "its codec is not known")
            # Inputs are decoded side by side already.
            stream.codec_context.thread_count = 1
            found = _sampled(container, stream, count, name, seek)
            return [_upright(frame) for frame in found]
    except av.FFmpegError as error:
        raise InputError(name, f"it cannot be decoded: {error.strerror}") from error
    except (EOFError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(name, f"it cannot be decoded: {error}") from error


def _sampled(container: Any, stream: Any, count: int, name: str, seek: bool) -> list[Any]:
    times, keys = _timeline(container, stream, name)
    wanted = [times[i] for i in centres(len(times), count)]
    try:
        found = _at_times(container, stream, wanted, keys if seek else keys[:1])
    except _NotTimed:
        # Counted twice as fast as kept: frames of one video may not fit in memory.
        n = sum(1 for _ in _from_start(container, stream))
        picked = set(centres(n, count))
        found = [f for i, f in enumerate(_from_start(container, stream)) if i in picked]
    if not found:
        raise InputError(name, "it has no frames")
    if any(frame.is_corrupt for frame in found):
        raise InputError(name, "it is damaged: a frame could not be decoded whole")
    return found


def _timeline(container: Any, stream: Any, name: str) -> tuple[list[int], list[Key]]:
    """Return when frames are shown, and the key frames among them; none where nothing says it."""
    times, keys = [], []
    timed = True
    for packet in container.demux(stream):
        if packet.size == 0:  # marks the end
            continue
        if packet.is_corrupt:
            raise InputError(name, "it is damaged or ends early")
        if not packet.is_discard:
            timed = timed and packet.pts is not None
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
    if not timed or len(set(times)) < len(times):
        return [], []
    _check_whole(stream, times, name)
    return sorted(times), sorted(keys)


def _check_whole(stream: Any, times: Sequence[int], name: str) -> None:
    """Refuse a Matroska file without its end, which reads like a shorter one."""
    said = _seconds(stream.metadata.get("DURATION", ""))
    if said is None or len(times) < 2:
        return
    # The last frame is shown for about as long as the others.
    step = (max(times) - min(times)) / (len(times) - 1)
    have = float((max(times) + step) * stream.time_base)
    if have < said - max(1.0, 0.02 * said):
        raise InputError(name, f"it ends early: after {have:.1f} of {said:.1f} seconds")


def _seconds(text: str) -> float | None:
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _at_times(container: Any, stream: Any, wanted: Sequence[int], keys: Sequence[Key]) -> list[Any]:
    """Return the frames shown at times that grow, decoding from the last key frame before each."""
    found = []
    frames: Iterator[Any] = iter(())
    at: int | None = None
    for time in wanted:
        before = bisect_right(keys, time, key=itemgetter(0))
        if before == 0:
            raise _NotTimed
        key = keys[before - 1]
        if at is None or key[0] > at:
            frames = _from_key(container, stream, key)
        for frame in frames:
            at = frame.pts
            if at is None or at >= time:
                break
        if at != time:
            raise _NotTimed
        found.append(frame)
    if not found:
        raise _NotTimed
    return found


def _from_key(container: Any, stream: Any, key: Key) -> Iterator[Any]:
    for time in key:  # some containers seek by when frames are shown, some by when decoded
        container.seek(time, stream=stream)
        packets = container.demux(stream)
        first = next(packets)
        # Behind the key frame, frames that lean on what was skipped might be shown.
        if first.pts is not None and first.pts <= key[0]:
            yield from first.decode()
            for packet in packets:
                yield from packet.decode()
            return
    raise _NotTimed


def _from_start(container: Any, stream: Any) -> Iterator[Any]:
    container.seek(0 if stream.start_time is None else min(stream.start_time, 0), stream=stream)
    yield from container.decode(stream)


def _upright(frame: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    # `rotation` says how far to turn counterclockwise.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
