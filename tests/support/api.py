#!/usr/bin/python3
"""Validates the output of the control API with independent libraries (Debian: python3-jsonschema,
python3-prometheus-client).

usage: api.py schema OPENAPI NAME < JSON     checks that JSON matches the schema NAME, without other fields
       api.py metrics < TEXT                 prints the samples of a Prometheus exposition as NAME{LABELS} VALUE
       api.py modules                        checks that the libraries are installed
"""
import json
import sys

import jsonschema
from prometheus_client.openmetrics.parser import text_string_to_metric_families

match sys.argv[1:]:
    case ["schema", openapi, name]:
        document = json.load(open(openapi))
        components = document["components"]
        for schema in components["schemas"].values():
            if schema.get("type") == "object":
                schema["additionalProperties"] = False
        schema = {"$ref": f"#/components/schemas/{name}", "components": components}
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(json.load(sys.stdin), schema, jsonschema.Draft202012Validator)
    case ["metrics"]:
        for family in text_string_to_metric_families(sys.stdin.read()):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                print(f"{sample.name}{{{labels}}} {sample.value}")
    case ["modules"]:
        pass
    case _:
        sys.exit(__doc__)
