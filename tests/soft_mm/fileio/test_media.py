"""Videos are written whole or not at all."""

import numpy as np
import pytest

from soft_mm.fileio.media import Video, video_writer


def test_an_error_leaves_the_video_before(tmp_path):
    path = tmp_path / 'folder/clip.mp4'
    frame = np.full((64, 80, 3), 100, 'uint8')
    with video_writer(path, 25.0) as write:
        for _ in range(3):
            write(frame)
    with pytest.raises(RuntimeError), video_writer(path, 25.0) as write:
        write(frame)
        raise RuntimeError
    assert [file.name for file in path.parent.iterdir()] == ['clip.mp4']
    video = Video(str(path))
    assert (video.fps, video.length) == (25.0, 3)
    assert [np.abs(read.astype(int) - frame).max() < 10 for read in video] == [True] * 3


def test_no_frame_makes_no_file(tmp_path):
    with video_writer(tmp_path / 'folder/clip.mp4', 25.0):
        pass
    assert not (tmp_path / 'folder').exists()
    assert list(Video(str(tmp_path / 'folder/clip.mp4'))) == []


def test_frames_too_large_for_mpeg_4(tmp_path):
    with (
        pytest.raises(OSError, match=r'OpenCV cannot write .*clip\.mp4 in MPEG-4'),
        video_writer(tmp_path / 'clip.mp4', 25.0) as write,
    ):
        write(np.zeros((16, 8200, 3), 'uint8'))
    assert not list(tmp_path.iterdir())
