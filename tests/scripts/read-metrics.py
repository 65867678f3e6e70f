#!/usr/bin/python3
"""Reads a page of metrics with Prometheus' own client library and prints it as JSON, sample by sample.

[[family, type, help, sample, {label: value}, value], ...]; fails on anything the library does not take.
"""
import json
import sys

from prometheus_client.parser import text_string_to_metric_families

page = sys.stdin.buffer.read().decode("utf-8", "strict")
samples = []
for family in text_string_to_metric_families(page):
    for sample in family.samples:
        samples.append([family.name, family.type, family.documentation, sample.name, sample.labels, sample.value])
json.dump(samples, sys.stdout)
