# Triton with `vlm_tensorrt_llm`. EXPERIMENTAL: neither the model nor this image has run on a GPU yet. From the repository's root:
#
#   docker build -f deploy/triton/tensorrt_llm.Dockerfile -t preprocessor-tensorrt-llm --build-arg TRITON_IMAGE=IMAGE .
#   docker run --gpus all --shm-size 8g -p 8001:8001 -e VLM_CHECKPOINT=Qwen/Qwen3-VL-8B-Instruct preprocessor-tensorrt-llm
#
# IMAGE is NVIDIA's tritonserver image (the one named py3), 2.75 or newer: Python 3.12 and the CUDA release that the wheel was
# built for (13 for the wheels below). No image of NVIDIA's has both Triton and a release of TensorRT-LLM that this model knows.
ARG TRITON_IMAGE
# hadolint ignore=DL3006
FROM ${TRITON_IMAGE}
ARG TENSORRT_LLM=1.4.0rc1
# The wheel is linked with Open MPI. TensorRT-LLM compiles kernels when they are first used, with the toolkit in CUDA_HOME.
ENV CUDA_HOME=/usr/local/cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libopenmpi-dev libzmq3-dev \
    && rm -rf /var/lib/apt/lists/*
# It brings its own torch, transformers and numpy < 2. Nothing may replace them afterwards.
RUN pip install --no-cache-dir "tensorrt-llm==${TENSORRT_LLM}"
# Triton puts this folder on every Python model's path; PYTHONPATH it ignores.
COPY engine_client /opt/tritonserver/backends/python/engine_client
COPY deploy/triton/models/vlm_tensorrt_llm /models/vlm_tensorrt_llm
# Which prompt the model expects for a video follows from the transformers release that the wheel brought.
RUN PYTHONPATH=/opt/tritonserver/backends/python \
    python3 -m engine_client.triton.backend.video_markers /models/vlm_tensorrt_llm/config.pbtxt
USER 1000:1000
# Caches of compiled kernels and of the hub; a volume there saves minutes of each start.
ENV HOME=/tmp
# Not under mpirun: TensorRT-LLM starts its own workers.
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit", "--load-model=vlm_tensorrt_llm"]
