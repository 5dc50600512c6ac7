# One image for every service: the argument after `serve` says which one a container is.
# BASE serves both stages, because a virtual environment only works beside the interpreter it was made with. Any image
# with python3.11 and its venv module will do.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
# pip lives in an environment of its own, so that the one that is shipped holds only what the mesh imports.
RUN python3.11 -m venv /opt/pip && python3.11 -m venv --without-pip /opt/dmesh
COPY pyproject.toml constraints.txt README.md ./
COPY services services
RUN /opt/pip/bin/pip --python /opt/dmesh/bin/python --no-cache-dir --disable-pip-version-check \
    install --constraint constraints.txt ".[server,otlp]"

FROM ${BASE}
COPY --from=build /opt/dmesh /opt/dmesh
# The root filesystem is read-only in the cluster: the build compiled the bytecode, and only /tmp can be written.
ENV PATH="/opt/dmesh/bin:${PATH}" \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, since the kubelet cannot tell that a named user is not root.
USER 65532:65532
EXPOSE 50051 50052 50053
ENTRYPOINT ["dmesh"]
CMD ["serve", "orchestrator"]
# Last, so that a new version or commit makes no other layer anew.
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Deadline Mesh" \
      org.opencontainers.image.description="gRPC services that run AI agents inside one deadline" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
