import os

import pytest
from mmengine.fileio import LocalBackend, dump, get_file_backend, load

from soft_mm.fileio import atomic_write
from soft_mm.fileio.atomic import ATOMIC


def test_a_file_appears_only_once_it_is_complete(tmp_path):
    path = tmp_path / 'file'
    with atomic_write(path) as temporary:
        temporary.write_text('new')
        assert not path.exists()
    assert path.read_text() == 'new'
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_an_interrupted_write_leaves_the_old_file(error, tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with (
        pytest.raises((KeyboardInterrupt, OSError)) as raised,
        atomic_write(path) as temporary,
    ):
        temporary.write_text('ne')
        raise error
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['file']
    if isinstance(error, OSError):
        assert str(raised.value) == (
            f"[Errno 28] No space left on device; nothing is written to: '{path}'"
        )


def test_mmengine_writes_atomically_where_it_is_asked_to(tmp_path, monkeypatch):
    path = tmp_path / 'file.json'
    dump(dict(a=1), path, backend_args=ATOMIC)
    assert load(path) == dict(a=1)

    put_text = LocalBackend.put_text

    def half(self, obj: str, filepath, encoding: str) -> None:
        put_text(self, obj[: len(obj) // 2], filepath, encoding)
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(LocalBackend, 'put_text', half)
    with pytest.raises(OSError, match='nothing is written to'):
        dump(dict(a=2), path, backend_args=ATOMIC)
    assert load(path) == dict(a=1)


def test_mmengines_own_backend_stays(tmp_path):
    assert type(get_file_backend(str(tmp_path))) is LocalBackend
