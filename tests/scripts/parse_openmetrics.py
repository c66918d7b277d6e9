"""Parses an OpenMetrics exposition with the Python client's parser.

Prints why it is refused and exits 1; prints the number of families and exits 0 when it is taken.
Any other exit code means that the check itself did not work.
"""

import sys

try:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families
except ImportError:
    print("the Python prometheus_client is missing: run tests/setup.sh", file=sys.stderr)
    sys.exit(3)


def main():
    with open(sys.argv[1], encoding="utf-8", newline="\n") as file:
        text = file.read()
    try:
        families = list(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    print(len(families))
    return 0


try:
    status = main()
except Exception as error:  # noqa: BLE001 - an unexpected error must not look like a verdict
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    status = 2
sys.exit(status)
