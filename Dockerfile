# syntax=docker/dockerfile:1
# The GPU environment as an image: for `docker run`, for Slurm (deploy/*.sbatch with IMAGE=), for deploy/kuberay-rayjob.yaml.
#
#   docker build -t REGISTRY/mbeir-cot:gpu . && docker push REGISTRY/mbeir-cot:gpu
#
# The machines need an NVIDIA driver >= 580 (CUDA 13); everything else is in the image. It is based on the devel image, because Triton
# and FlashInfer compile kernels on their first start.
ARG CUDA=13.0.2
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04

# Ubuntu 24.04 has glibc 2.39 and Python 3.12. libibverbs is for NCCL over InfiniBand, wget for KubeRay's probes.
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential ibverbs-providers libibverbs1 make python3-dev python3-venv wget \
 && rm -rf /var/lib/apt/lists/*

# The locked packages are a separate layer, so that a change of the sources does not rebuild (and push) gigabytes.
WORKDIR /work
COPY requirements-gpu.lock .
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv .venv && .venv/bin/pip install --no-deps --requirement requirements-gpu.lock
COPY . .
RUN scripts/setup.sh gpu && ln -s /work/.venv/bin/mbeir-cot /work/.venv/bin/ray /work/.venv/bin/torchrun /usr/local/bin/
# Links instead of PATH: a login shell, which some versions of KubeRay start, would reset a PATH set here.
