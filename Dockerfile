# One image for the three services and the Ray head; which one runs is the command.
# Build with --build-arg TORCH_INDEX=https://… for another build of torch than PyPI's.

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=
WORKDIR /src
RUN python -m venv /opt/ltxtrain
ENV PATH=/opt/ltxtrain/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY third_party third_party
COPY protos protos
COPY ltxtrain_services ltxtrain_services
COPY ltxtrain_trainer ltxtrain_trainer
COPY ltxtrain_pocket ltxtrain_pocket
COPY clients clients
RUN pip install --constraint constraints.txt '.[server,quantized,telemetry]'

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 ltxtrain && mkdir /state /models && chown ltxtrain /state /models
COPY --from=build /opt/ltxtrain /opt/ltxtrain
ENV PATH=/opt/ltxtrain/bin:$PATH \
    GRPC_ENABLE_FORK_SUPPORT=0 \
    RAY_USAGE_STATS_ENABLED=0 \
    OMP_WAIT_POLICY=PASSIVE \
    LTXTRAIN_STATE_DIR=/state
USER ltxtrain
COPY --chmod=755 docker/entrypoint /usr/local/bin/entrypoint
ENTRYPOINT ["entrypoint"]
