# A static binary in an empty image. Without a daemon: buildah build --tag controlplane-exporter .
#
# Where no registry is in reach, the binary can come from outside instead of from the first stage:
#   make image        (deploy/package.sh image: the stage `build` is replaced by a folder that holds what is copied)

ARG BUILDER=docker.io/library/rust:1.95-bookworm

# On the builder's own processor, which must be amd64: the toolchain is; the binary for arm64 is cross-compiled.
FROM --platform=$BUILDPLATFORM ${BUILDER} AS build
ARG TARGETARCH=amd64
WORKDIR /src
# The toolchain changes seldom: a layer of its own.
COPY tests/setup.sh tests/setup.sh
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip git \
 && case ${TARGETARCH} in arm64) tests/setup.sh static aarch64 ;; *) tests/setup.sh static x86_64 ;; esac
COPY . .
ARG REVISION=
# A first run of the binary is part of the build, where it runs on this processor.
RUN case ${TARGETARCH} in arm64) arch=aarch64 ;; *) arch=x86_64 ;; esac \
 && deploy/package.sh static $arch \
 && install -D target/static/$arch-unknown-linux-musl/release/controlplane-exporter /controlplane-exporter \
 && install -d /run/controlplane-exporter \
 && if [ "$(uname -m)" = $arch ]; then /controlplane-exporter --version; fi

FROM scratch AS final
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="controlplane-exporter" \
      org.opencontainers.image.description="Figures of what kills Kubernetes control planes, for Prometheus" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/controlplane-exporter/controlplane-exporter" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /controlplane-exporter /controlplane-exporter
# For the socket on which the health check asks: it does not know the address that an argument gives the agent.
COPY --from=build --chown=65534:65534 /run/controlplane-exporter /run/controlplane-exporter
# Nobody: what the host lets everybody read. Its files are mounted below /host with --path.rootfs=/host.
USER 65534:65534
EXPOSE 10379
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/controlplane-exporter", "check", "--self"]
ENTRYPOINT ["/controlplane-exporter"]
