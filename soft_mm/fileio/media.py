"""Find, read and write images and videos. Frames are (H, W, 3), uint8, in BGR."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from mmengine.fileio import put

from .atomic import ATOMIC

IMAGES = '.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'
VIDEOS = '.avi', '.mkv', '.mov', '.mp4', '.webm'


def find_media(patterns: Iterable[str]) -> dict[str, str]:
    """Find images and videos by their suffixes.

    Args:
        patterns: files, folders and glob patterns. A folder stands for the files directly in it, and
            ``**`` in a pattern for any number of nested folders.

    Returns:
        Paths by names that are different for different files: the path below the folder that all
        files share, without the suffix, or with it if two names would be the same without.

    Raises:
        ValueError: if nothing matches a pattern.
    """
    files = {os.path.abspath(file): file for pattern in patterns for file in _match(pattern)}
    folder = os.path.commonpath([os.path.dirname(path) for path in files])
    names = [os.path.relpath(path, folder) for path in files]
    stems = [os.path.splitext(name)[0] for name in names]
    return dict(zip(stems if len(set(stems)) == len(stems) else names, files.values()))


def _match(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        wanted = os.path.join(glob.escape(pattern), '*')
    else:
        wanted = glob.escape(pattern) if os.path.exists(pattern) else pattern
    found = glob.glob(wanted, recursive=True)
    found = sorted(file for file in found if file.lower().endswith(IMAGES + VIDEOS))
    if not found:
        raise ValueError(
            f'{pattern!r} must be an image ({", ".join(IMAGES)}), a video ({", ".join(VIDEOS)}), or '
            'a folder or pattern of them; nothing is found'
        )
    return found


def write_image(path: Path, image: np.ndarray) -> None:
    put(cv2.imencode(path.suffix, image)[1].tobytes(), path, backend_args=ATOMIC)


class Video:
    """Iterator over the frames of a video file or of a webcam. It is empty if that cannot be read.

    Args:
        source: path of a file, or index of a webcam.

    Attributes:
        fps (float): frames per second; 30 if unknown.
        length (int | None): number of frames according to the file; None if unknown.
    """

    def __init__(self, source: str | int) -> None:
        self._capture = cv2.VideoCapture(source)
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 30.0
        length = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = length if length > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        frame = self._capture.read()[1]
        if frame is None:
            raise StopIteration
        return frame


@contextmanager
def video_writer(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends a frame to a video. The file appears once it is complete.

    Args:
        path: file to write, in MPEG-4. Without frames it is not written.
        fps: frames per second.

    Raises:
        OSError: if OpenCV cannot write the file.
    """
    part = path.with_name(f'.{path.name}.part.mp4')  # OpenCV needs the suffix
    writer = cv2.VideoWriter()

    def write(frame: np.ndarray) -> None:
        if not writer.isOpened():
            path.parent.mkdir(parents=True, exist_ok=True)
            size = frame.shape[1], frame.shape[0]
            if not writer.open(str(part), cv2.VideoWriter_fourcc(*'mp4v'), fps, size):
                raise OSError(f'OpenCV cannot write {path} in MPEG-4')
        writer.write(frame)

    try:
        yield write
        if writer.isOpened():
            writer.release()
            part.replace(path)
    finally:
        writer.release()
        part.unlink(missing_ok=True)
