"""Runtimes for ONNX files, which this module alone imports, and only when a file is opened."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from os import PathLike
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Session(NamedTuple):
    """A model in a runtime.

    Attributes:
        inputs: names of its inputs.
        outputs: names of its outputs.
        dataset_meta: classes and palette that the file names, perhaps none.
        run: maps arrays by the names of the inputs to arrays by the names of the outputs.
    """

    inputs: list[str]
    outputs: list[str]
    dataset_meta: dict | None
    run: Callable[[Arrays], Arrays]


def open_onnxruntime(file: str | PathLike | bytes, threads: int | None) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # its exceptions have no common class but this one
        raise ValueError(f'ONNX Runtime cannot open the file: {error}') from None
    outputs = [out.name for out in session.get_outputs()]
    meta = session.get_modelmeta().custom_metadata_map.get('dataset_meta')
    return Session(
        [out.name for out in session.get_inputs()],
        outputs,
        meta and json.loads(meta),
        lambda inputs: dict(zip(outputs, session.run(None, inputs))),
    )


def open_openvino(file: str | PathLike | bytes, threads: int | None) -> Session:
    import openvino

    core = openvino.Core()
    # On CPUs that have bfloat16 it is the default.
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': threads or 0}
    try:
        model = core.read_model(file)
        compiled = core.compile_model(model, 'CPU', options)
    except RuntimeError as error:
        raise ValueError(f'OpenVINO cannot open the file: {error}') from None
    outputs = [out.any_name for out in model.outputs]
    path = ['framework', 'dataset_meta']
    meta = model.get_rt_info(path).value if model.has_rt_info(path) else None
    return Session(
        [out.any_name for out in model.inputs],
        outputs,
        meta and json.loads(meta),
        lambda inputs: dict(zip(outputs, compiled(inputs).values())),
    )


RUNTIMES = dict(onnxruntime=open_onnxruntime, openvino=open_openvino)


def open_session(
    file: str | PathLike | bytes, runtime: str = 'onnxruntime', threads: int | None = None
) -> Session:
    """Open an ONNX file on the CPU, computing in fp32.

    Args:
        file: path or content of the file.
        runtime: 'onnxruntime' or 'openvino'.
        threads: number of threads; None lets the runtime choose.

    Raises:
        ValueError: if the runtime is not installed or cannot open the file.
    """
    if find_spec(runtime) is None:
        raise ValueError(f'the runtime {runtime} is not installed: pip install {runtime}')
    return RUNTIMES[runtime](file, threads)
