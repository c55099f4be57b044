import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (root / 'soft_mm/__init__.py').read_text())[1]

setup(
    name='soft_mm',
    version=version,
    description='Linear-attention vision backbones (SOFT, SOFT-Norm) for OpenMMLab',
    long_description=(root / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['soft_mm', 'soft_mm.*']),
    python_requires='>=3.10',
    # MMEngine comes from one of two distributions with the same import name: the extras name them.
    install_requires=['torch>=2.4'],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6', 'onedl-mmdetection>=3.5.1',
            'onedl-mmsegmentation>=1.4.2', 'onedl-mmpretrain>=1.3.6'
        ],
        'openmmlab': [
            'mmengine>=0.10.7', 'mmcv>=2.1.0', 'mmdet>=3.3.0', 'mmsegmentation>=1.2.2',
            'mmpretrain>=1.2.0'
        ],
        'dev': ['pre-commit', 'pytest', 'ruff', 'scikit-learn'],
    },
)
