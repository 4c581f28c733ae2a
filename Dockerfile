# Two targets: `worker`, the daemon (no torch), and `trainer`, what RunPod runs.
#   docker build --target worker  -t lora-worker .
#   docker build --platform linux/amd64 --target trainer -t lora-trainer .
# Neither holds a secret: the worker reads its keys from the environment, the trainer gets a run's token
# with each job.

FROM python:3.12-slim AS worker
# The port is open inside the container only, unless LORA_WORKER_HTTP_HOST says otherwise.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LORA_WORKER_LOG_FORMAT=json LORA_WORKER_HTTP_PORT=8080
WORKDIR /app
COPY pyproject.toml README.md ./
COPY sql sql
COPY contract contract
COPY conversations conversations
COPY trainer trainer
COPY worker worker
# At the versions that were tested together, with what notices to operators and traces need where they are asked for.
RUN pip install --no-cache-dir --constraint trainer/requirements.lock --constraint worker/notify.lock ".[notify,telemetry]" \
    && useradd --create-home --uid 10001 worker
# The worker writes no file: `docker run --read-only --cap-drop ALL --memory 256m` is enough for it.
USER worker
WORKDIR /home/worker
# Without curl, and also where the port is set to 0.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["lora-worker", "healthcheck"]
# As PID 1, without a shell: SIGTERM must reach the daemon, which releases its leases. No ENTRYPOINT: Fly and
# the Procfile name the whole command, which an entrypoint would get as its arguments.
CMD ["lora-worker", "run"]

# devel, not runtime: causal-conv1d has no wheels on PyPI and compiles. CUDA 12.6 runs on older drivers; the compiled
# kernels are for GPUs from sm_75 (T4) to sm_90 (H100). Pin by digest once you have checked an image.
FROM pytorch/pytorch:2.13.0-cuda12.6-cudnn9-devel AS trainer
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    # The network volume: base models are downloaded once, not for each job.
    HF_HOME=/runpod-volume/huggingface-cache \
    HF_XET_HIGH_PERFORMANCE=1 \
    TOKENIZERS_PARALLELISM=false \
    # RunPod's SDK logs outputs at its default level, debug.
    RUNPOD_LOG_LEVEL=INFO \
    # Long trainings fragment the allocator, and the fused experts need large blocks.
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
    PATH=/opt/trainer/bin:$PATH
WORKDIR /app
# The base image's Python is the distribution's, and externally managed: pip refuses to install into it (PEP 668), and
# could not replace what the distribution brought. A virtual environment takes our packages and sees the image's torch;
# without pip of its own, since the distribution packages that apart.
RUN python3 -m venv --system-site-packages --without-pip /opt/trainer
COPY trainer/requirements.lock trainer/kernels.lock trainer/
# The base image brings torch; everything else comes at the versions that were tested together. The lock
# says for which Python it was made; its pins hold for the image's, too, or pip refuses them here.
RUN python -m pip install --no-cache-dir -r trainer/requirements.lock
# Qwen3-Next's linear attention: without them training falls back to slow torch code and can't pack.
# causal-conv1d compiles against the image's torch: hence no build isolation, and what it builds with comes first.
# FORCE_BUILD, since its setup would download a wheel without a checksum from elsewhere instead.
RUN python -m pip install --no-cache-dir -r trainer/kernels.lock --only-binary :all: \
    && CAUSAL_CONV1D_FORCE_BUILD=TRUE \
        python -m pip install --no-cache-dir --no-build-isolation --no-deps causal-conv1d==1.7.0
COPY pyproject.toml README.md ./
COPY sql sql
COPY contract contract
COPY conversations conversations
COPY worker worker
COPY trainer trainer
RUN python -m pip install --no-cache-dir --no-deps .
# What was built must load, and none of it needs a GPU for that: better to fail here than in each job.
RUN python -c "import torch, causal_conv1d, fla, bitsandbytes, tensorboardX, lora_trainer.handler, lora_trainer.recipe.train"
# PID 1, since the SDK's ping process outlives a killed parent and would go on saying that the job lives.
CMD ["python", "-u", "-m", "lora_trainer.handler"]
