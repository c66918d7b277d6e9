"""Holds Kubernetes objects against the schemas of Kubernetes, and prints them as JSON.

kubernetes_objects.py VERSION,VERSION FILE...    strict: unknown fields, wrong types and double keys are errors

Prints a list of objects in the order of the files. Objects of custom resources are only parsed. Exits 1 with the
reasons; any other exit code means that the check itself did not work.
"""

import functools
import json
import sys

try:
    import kubernetes_validate
    import kubernetes_validate.utils
    import yaml
except ImportError as error:
    print(f"{error}: run tests/setup.sh", file=sys.stderr)
    sys.exit(3)

# It reads and parses megabytes of schemas anew for each object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

CUSTOM = {"monitoring.coreos.com", "helm.cattle.io", "kustomize.config.k8s.io"}


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.YAMLError(f"{name!r} twice{key.start_mark}")
            seen.add(name)
        return super().construct_mapping(node, deep)


def main():
    versions = sys.argv[1].split(",")
    found, wrong = [], []
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as file:
            try:
                documents = [d for d in yaml.load_all(file, Loader) if d is not None]
            except yaml.YAMLError as error:
                wrong.append(f"{path}: {error}")
                continue
        for document in documents:
            found.append(document)
            if document["apiVersion"].split("/")[0] in CUSTOM:
                continue
            for version in versions:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                    where = "/".join(str(part) for part in getattr(error, "path", []))
                    what = f"{document['kind']} {document['metadata']['name']}"
                    wrong.append(f"{path}: {what} with Kubernetes {version}: {where}: {error.message[:500]}")
    if wrong:
        print("\n".join(wrong))
        return 1
    print(json.dumps(found))
    return 0


try:
    status = main()
except Exception as error:  # noqa: BLE001 - an unexpected error must not look like a verdict
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    status = 2
sys.exit(status)
