//! A store that is fuller than a real node's, for what measures rendering.

use std::sync::Arc;
use std::time::Duration;

use controlplane_exporter::metric::Kind;
use controlplane_exporter::sample::Batch;
use controlplane_exporter::samplers;
use controlplane_exporter::store::Store;

/// A store with four series of every metric, which is more than a real node has.
///
/// # Errors
///
/// When the batches cannot be read.
pub(crate) fn store() -> Result<Arc<Store>, serde_json::Error> {
    let store = Arc::new(Store::default());
    for (name, def) in samplers::ALL {
        let mut series = Vec::new();
        for desc in def.metrics.iter().filter(|desc| desc.kind != Kind::Histogram) {
            for i in 0..if desc.labels.is_empty() { 1 } else { 4 } {
                let labels: Vec<String> = desc.labels.iter().map(|l| format!("{l}-{i}")).collect();
                series.push(serde_json::json!([desc.name, labels, {"Number": 12.5}]));
            }
        }
        let wire =
            serde_json::json!({"series": series, "failures": [], "events": [], "dropped": 0});
        let batch = Batch::from_wire(serde_json::from_value(wire)?, def.metrics);
        store.put(name, batch, Duration::from_secs(5));
    }
    Ok(store)
}
