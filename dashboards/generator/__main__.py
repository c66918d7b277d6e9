"""Writes the boards: `python3 dashboards/generator FOLDER`.

Needs the Grafana Foundation SDK for Python, which `tests/setup.sh` puts into the cache of the tests.
"""

import json
import sys
from pathlib import Path

import datastore
import node
import overview
from grafana_foundation_sdk.cog.encoder import JSONEncoder

NOTE = "# Written by dashboards/generator: `make dashboards`."
PROVISIONING = f"""\
{NOTE}
# Put this into /etc/grafana/provisioning/dashboards/ and the boards' JSON into the folder named below.
apiVersion: 1
providers:
  - name: controlplane-exporter
    folder: Control plane
    type: file
    allowUiUpdates: false
    updateIntervalSeconds: 60
    options:
      path: /var/lib/grafana/dashboards/controlplane
      foldersFromFilesStructure: false
"""


def config_map(name, text):
    lines = "".join(f"    {line}\n" for line in text.splitlines())
    return f"""\
{NOTE}
# For the sidecar of kube-prometheus-stack and of Grafana's chart, which watches the label below.
apiVersion: v1
kind: ConfigMap
metadata:
  name: controlplane-exporter-{name}
  labels:
    app.kubernetes.io/name: controlplane-exporter
    grafana_dashboard: "1"
  annotations:
    grafana_folder: Control plane
data:
  controlplane-{name}.json: |
{lines}"""


def main():
    folder = Path(sys.argv[1])
    (folder / "provisioning").mkdir(parents=True, exist_ok=True)
    (folder / "configmaps").mkdir(exist_ok=True)
    for name, module in (("overview", overview), ("node", node), ("datastore", datastore)):
        text = json.dumps(module.build(), cls=JSONEncoder, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        (folder / "configmaps" / f"{name}.yaml").write_text(config_map(name, text), encoding="utf-8")
    (folder / "provisioning" / "controlplane.yaml").write_text(PROVISIONING, encoding="utf-8")


main()
