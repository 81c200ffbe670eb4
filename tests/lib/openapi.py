"""Holds the answers of a daemon against docs/openapi.yaml: each is described, and has the keys that are promised and no others."""

import json
import re

import yaml
from thawtest import REPOSITORY, Failure, check

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}


class Described:
    """Asks a daemon and checks what it answers. `asked` are the operations so far."""

    def __init__(self, daemon):
        self.daemon, self.asked = daemon, set()
        self.document = yaml.safe_load((REPOSITORY / "docs/openapi.yaml").read_text())

    def operations(self):
        return {(method, path) for path, entry in self.document["paths"].items() for method in entry if method != "parameters"}

    def api(self, method, target, body=None):
        """The answer, whatever its status."""
        status, answer = self.daemon.api(method, target, body, raw=True)
        path = target.partition("?")[0]
        found = [p for m, p in self.operations() if m == method.lower() and re.fullmatch(re.sub(r"{\w+}", "[^/]+", p), path)]
        check(found, f"{method} {path} is not described")
        template = min(found, key=lambda p: p.count("{"))
        self.asked.add((method.lower(), template))
        where = f"{method} {template} {status}"
        responses = self.document["paths"][template][method.lower()]["responses"]
        response = responses.get(str(status)) or responses.get(f"{status // 100}XX")
        check(response, f"{where} is not described")
        kind, content = next(iter(self.resolve(response)["content"].items()))
        if kind == "application/x-ndjson":
            for line in answer.splitlines() if isinstance(answer, str) else [json.dumps(answer)]:
                self.check(json.loads(line), content["schema"], where)
        elif kind == "application/json":
            self.check(answer, content["schema"], where)
        return answer

    def resolve(self, node):
        while "$ref" in node:
            words = node["$ref"].split("/")[1:]
            node = self.document
            for word in words:
                node = node[word]
        return node

    def check(self, value, schema, where, closed=True):
        schema = self.resolve(schema)
        for part in schema.get("allOf", []):
            self.check(value, part, where, closed=False)
        types = schema.get("type", [])
        types = [types] if isinstance(types, str) else types
        fits = not types or any(isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in types)
        if not fits or (isinstance(value, str) and value not in schema.get("enum", [value])):
            raise Failure(f"{where} is {value!r}, described as {schema.get('enum', types)}")
        if isinstance(value, list) and "items" in schema:
            for item in value:
                self.check(item, schema["items"], f"{where}[]")
        if isinstance(value, dict) and "properties" in schema:
            missing = set(schema.get("required", [])) - set(value)
            check(not missing, f"{where} lacks {missing}")
            for key, member in value.items():
                if key in schema["properties"]:
                    self.check(member, schema["properties"][key], f"{where}.{key}")
                else:
                    check(not closed or schema.get("additionalProperties") is True, f"{where} has {key}, which is not described")
