# docker build -t soft_mm .
# docker build -t soft_mm:cuda --build-arg BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04 --build-arg FORCE_CUDA=1 .
# docker run --rm -v $PWD/work_dirs:/soft_mm/work_dirs soft_mm make demo
ARG BASE=ubuntu:24.04
FROM $BASE

RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        g++ git make python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /soft_mm
# The dependencies change less often than the code: their layers come first.
COPY Makefile requirements.txt ./
COPY tools/step.sh tools/install_mmcv.sh tools/
# With 1, the CUDA ops of mmcv and soft_mm are compiled for the architectures of TORCH_CUDA_ARCH_LIST.
ARG FORCE_CUDA=0
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0"
ENV FORCE_CUDA=$FORCE_CUDA TORCH_CUDA_ARCH_LIST=$TORCH_CUDA_ARCH_LIST
RUN make .venv/bin/.mmcv && rm -rf /root/.cache
COPY . .
RUN make setup
ENV PATH=/soft_mm/.venv/bin:$PATH
CMD ["make", "demo"]
