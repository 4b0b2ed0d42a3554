# One image for the three services, the gateway and Ray's nodes; which one runs is the command.
# What changes seldom comes first: after a change of code two small layers are made, and no package is fetched.
# Build arguments: PYTHON_IMAGE, another base such as a mirror's; TORCH_INDEX, another build of torch than PyPI's.
# The digest is of an index of platforms; docker/pin.sh moves it.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${PYTHON_IMAGE} AS packages
# torch.compile (options.compile_blocks) and Triton call a compiler when they run.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 ltxtrain && mkdir /state /models && chown ltxtrain /state /models
ENV PATH=/opt/ltxtrain/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    GRPC_ENABLE_FORK_SUPPORT=0 \
    RAY_USAGE_STATS_ENABLED=0 \
    OMP_WAIT_POLICY=PASSIVE \
    LTXTRAIN_STATE_DIR=/state
RUN python -m venv /opt/ltxtrain
ARG TORCH_INDEX=
COPY constraints.txt /opt/
RUN pip install --constraint /opt/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
# Of '.[server,quantized,telemetry]' all but the project itself.
COPY pyproject.toml docker/requirements.py /opt/
RUN cd /opt && python requirements.py server quantized telemetry >requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

FROM packages AS wheel
RUN cd /opt && python -m venv build && python requirements.py --build >build.txt \
    && build/bin/pip install --constraint constraints.txt --requirement build.txt
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY third_party third_party
COPY protos protos
COPY ltxtrain_services ltxtrain_services
COPY ltxtrain_trainer ltxtrain_trainer
COPY ltxtrain_pocket ltxtrain_pocket
COPY clients clients
RUN PATH=/opt/build/bin:$PATH pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM packages
# Not by a mount: podman's cache does not look into one, and would go on with the code of before.
COPY --from=wheel /wheel /opt/wheel
RUN pip install --no-deps --no-index /opt/wheel/*.whl
USER ltxtrain
COPY --chmod=755 docker/entrypoint /usr/local/bin/entrypoint
ENTRYPOINT ["entrypoint"]
