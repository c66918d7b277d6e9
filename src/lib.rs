//! An agent that watches what kills Kubernetes control planes and serves it to Prometheus.

pub mod host;
