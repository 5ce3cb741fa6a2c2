FROM python:3.13-slim-bookworm AS build
WORKDIR /build
COPY requirements.lock pyproject.toml README.md ./
COPY service service
COPY generated generated
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation ./generated .

FROM build AS build-sandbox
COPY requirements-run.lock ./
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes -r requirements-run.lock \
    && /opt/venv/bin/pip uninstall --yes hatchling pathspec pluggy trove-classifiers pip

# What builds is in no image that runs: the service, with NATS and tracing, as requirements.lock has them.
FROM build AS build-service
RUN /opt/venv/bin/pip uninstall --yes hatchling pathspec pluggy trove-classifiers pip

FROM python:3.13-slim-bookworm AS runtime
LABEL org.opencontainers.image.title="pointillist-destination" \
      org.opencontainers.image.description="Segment events in over gRPC, Pointillist records out over HTTP"
RUN pip uninstall --yes pip \
    && rm -r /usr/local/lib/python3.13/ensurepip \
    && groupadd --gid 10001 pointillist \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin pointillist \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/pointillist-destination
ENV PATH="/opt/venv/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["pointillist-destination"]

FROM runtime AS sandbox
COPY --from=build-sandbox /opt/venv /opt/venv
CMD ["sandbox", "--listen", "0.0.0.0:8080"]

FROM runtime AS service
COPY --from=build-service /opt/venv /opt/venv
ENV POINTILLIST_GRPC_LISTEN=0.0.0.0:50051 \
    POINTILLIST_METRICS_LISTEN=0.0.0.0:9464 \
    POINTILLIST_HEALTH_LISTEN=127.0.0.1:50052 \
    POINTILLIST_OUTBOX_URL=sqlite:////var/lib/pointillist-destination/outbox.db
VOLUME /var/lib/pointillist-destination
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-m", "service.probe"]
CMD ["serve"]
