"""Reads boards with the types of Grafana's Foundation SDK and writes them again.

Prints every place where that changed something: a key that the SDK does not know is lost on the way.
Exits 1 when there is such a place; any other exit code but 0 means that the check itself did not work.
"""

import json
import sys

try:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard
except ImportError as error:
    print(f"{error}: run tests/setup.sh", file=sys.stderr)
    sys.exit(3)


def differences(old, new, path):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key in old and key in new:
                yield from differences(old[key], new[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is {'lost' if key in old else 'new'}"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new)):
            yield from differences(*pair, f"{path}[{index}]")
    elif old != new or type(old) is not type(new):
        yield f"{path}: {old!r} became {new!r}"


def main():
    register_default_plugins()
    found = []
    for file in sys.argv[1:]:
        with open(file, encoding="utf-8") as text:
            old = json.load(text)
        new = json.loads(json.dumps(Dashboard.from_json(old), cls=JSONEncoder))
        found += differences(old, new, file)
    print("\n".join(found))
    return 1 if found else 0


try:
    status = main()
except Exception as error:  # noqa: BLE001 - an unexpected error must not look like a verdict
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    status = 2
sys.exit(status)
