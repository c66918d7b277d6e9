//! See `crate::fuzzing`.

use super::{embedded, summaries};

/// No more certificates are found than stand there.
pub fn kubeconfig(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(chain) = summaries(&text) {
        assert_eq!(chain.len(), text.matches("-----BEGIN CERTIFICATE-----").count());
    }
    if let Ok(chain) = embedded(&text) {
        // The smallest certificate has some hundred bytes.
        assert!(chain.len() <= text.len() / 100, "{} in {} bytes", chain.len(), text.len());
    }
}
